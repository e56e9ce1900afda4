"""Keeps the checkpoints of a run in a bucket of S3, or of whatever talks like it.

    pip install boto3
    hunyuan-train train ... --save_steps 100 --resume_from_checkpoint auto \
      --after_checkpoint 'python examples/s3_copies.py up s3://bucket/run' \
      --before_resume 'python examples/s3_copies.py down s3://bucket/run'

The manifest goes up last, and only a checkpoint that has one comes down: what was cut off in the
middle counts as absent. The bucket's own rules say how long copies are kept.
"""

import os
import sys
from pathlib import Path
from urllib.parse import urlparse

import boto3

MANIFEST = "manifest.json"


def open_bucket(url):
    """The bucket of s3://bucket/prefix, and the prefix; AWS_ENDPOINT_URL names another server."""
    parts = urlparse(url)
    return boto3.resource("s3").Bucket(parts.netloc), parts.path.strip("/")


def upload(bucket, prefix, checkpoint: Path):
    """Copy one checkpoint, its manifest last."""
    for file in sorted(checkpoint.iterdir(), key=lambda file: file.name == MANIFEST):
        bucket.upload_file(str(file), f"{prefix}/{checkpoint.name}/{file.name}")


def download_newest(bucket, prefix, output_dir: Path):
    """Bring the newest whole checkpoint back, unless it is here."""
    keys = [one.key for one in bucket.objects.filter(Prefix=f"{prefix}/step-")]
    names = sorted(key.split("/")[-2] for key in keys if key.endswith(f"/{MANIFEST}"))
    if not names or (output_dir / "checkpoints" / names[-1] / MANIFEST).exists():
        return  # a first start, or the same machine
    checkpoint = output_dir / "checkpoints" / names[-1]
    unfinished = checkpoint.with_name(f"{checkpoint.name}.incomplete")
    unfinished.mkdir(parents=True, exist_ok=True)
    for key in keys:
        if key.startswith(f"{prefix}/{checkpoint.name}/"):
            bucket.download_file(key, str(unfinished / key.split("/")[-1]))
    os.rename(unfinished, checkpoint)


def main(way, url, folder):
    bucket, prefix = open_bucket(url)
    if way == "up":
        upload(bucket, prefix, Path(folder))
    else:
        download_newest(bucket, prefix, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
