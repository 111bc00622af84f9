# One run on two machines, with one GPU each. Needs: yolofleet[cluster] on both, and a storage for data and runs that both can reach.
set -eu
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token" # made by: ray get-auth-token --generate
if [ "$1" = head ]; then
    ray start --head --port 6379
elif [ "$1" = second ]; then # two-nodes.sh second HEAD
    ray start --address "$2:6379"
else # on the head, when both have started
    yolofleet cluster doctor birds.yaml
    yolofleet submit birds.yaml cluster.workers=2 cluster.gpus_per_worker=1 storage=s3://runs --follow
fi
