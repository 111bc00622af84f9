# In CI: train, verify, and promote the new version to champion only if it passes the gates; any failure ends the script.
# Needs: MLFLOW_TRACKING_URI, and a job that registers its model as birds.
set -eu
yolofleet train birds.yaml
yolofleet registry verify birds@candidate --strict
yolofleet registry promote birds@candidate --policy examples/promotion.yaml --reason "commit ${GIT_COMMIT:-unknown}"
yolofleet registry history birds
