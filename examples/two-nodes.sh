# One run on two machines, with one GPU each. Needs: yolofleet[cluster] on both, and data and runs where both reach them.
set -eu
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token" # made by: ray get-auth-token --generate
if [ "$1" = head ]; then
    ray start --head --port 6379
elif [ "$1" = second ]; then # two-nodes.sh second HEAD
    ray start --address "$2:6379"
else # on the head, once both are there
    yolofleet cluster doctor birds.yaml
    yolofleet submit birds.yaml cluster.workers=2 cluster.gpus_per_worker=1 storage=s3://runs --follow
fi
