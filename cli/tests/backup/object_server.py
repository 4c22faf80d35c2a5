"""moto's S3 in a process of its own: makes an account and a bucket, prints how to use them, and from then on checks every signature."""

import logging
import os
import signal
import sys

# The calls below are let through; none after them is.
_FREE_CALLS = 4
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = str(_FREE_CALLS)

import boto3  # type: ignore[import-untyped]  # noqa: E402  # ships no types; moto reads the variable when it is loaded
from moto.server import ThreadedMotoServer  # noqa: E402

_POLICY = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'


def main(bucket: str) -> None:
    """Serves until SIGTERM."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    given = {"endpoint_url": url, "region_name": "us-east-1", "aws_access_key_id": "nobody", "aws_secret_access_key": "nothing"}
    iam = boto3.client("iam", **given)
    iam.create_user(UserName="backup")
    iam.put_user_policy(UserName="backup", PolicyName="all", PolicyDocument=_POLICY)
    key = iam.create_access_key(UserName="backup")["AccessKey"]
    boto3.client("s3", **given).create_bucket(Bucket=bucket)
    print(f"AWS_ENDPOINT_URL={url} AWS_ACCESS_KEY_ID={key['AccessKeyId']} AWS_SECRET_ACCESS_KEY={key['SecretAccessKey']}", flush=True)
    signal.sigwait({signal.SIGTERM})
    os._exit(0)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(sys.argv[1])
