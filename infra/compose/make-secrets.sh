#!/usr/bin/env bash
# Makes the secrets of compose.yaml, once: what is there stays. Containers run as other users than the files' owner, so
# the files can be read by all, and the folder around them is entered by its owner only.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
chmod 700 secrets
cd secrets

random() { od -An -tx1 -N32 /dev/urandom | tr -d ' \n'; }
keep() { if [ -e "$1" ]; then cat > /dev/null; else cat > "$1"; fi; }

random | keep ray_token
printf yolofleet | keep minio_user
random | keep minio_password
random | keep postgres_password
random | keep mlflow_session_key
random | keep mlflow_password
keep storage_credentials <<END
[default]
aws_access_key_id = $(cat minio_user)
aws_secret_access_key = $(cat minio_password)
END
keep mlflow_credentials <<END
[mlflow]
mlflow_tracking_username = admin
mlflow_tracking_password = $(cat mlflow_password)
END
keep mlflow_authentication <<END
[mlflow]
default_permission = READ
database_uri = postgresql+psycopg2://mlflow@postgres/mlflow
admin_username = admin
admin_password = $(cat mlflow_password)
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
grant_default_workspace_access = false
END
keep environment.sh <<END
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/ray_token
export AWS_ENDPOINT_URL=http://127.0.0.1:9000 AWS_REGION=us-east-1 AWS_SHARED_CREDENTIALS_FILE=$PWD/storage_credentials
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000 MLFLOW_TRACKING_USERNAME=admin
export MLFLOW_TRACKING_PASSWORD=$(cat mlflow_password)
END
chmod 444 -- *
echo "secrets are in $PWD"
