"""Bytes of a file, wherever it lies: in a folder, at a web address, in an object store."""

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import webdataset as wds

if TYPE_CHECKING:
    from minio import Minio

AMAZON = "https://s3.amazonaws.com"
DENIED = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT_URL if it is "
    "not Amazon's"
)


def read_bytes(url: str) -> bytes:
    """The bytes of a path, an address http:// or https:// (by webdataset), or s3://BUCKET/KEY.

    An object store of S3's protocol is asked with the credentials that AWS's own tools take:
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or those of AWS_PROFILE in
    ~/.aws/credentials; without any, unsigned. AWS_REGION and AWS_ENDPOINT_URL say where it is.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: a store that refuses, or does not answer.
        ValueError: another kind of address: webdataset would run the command of a `pipe:`, and a
            checkpoint may be a stranger's; s3:// without its library.
    """
    scheme, web, rest = url.partition("://")
    if not web:
        if not Path(url).is_file():
            raise FileNotFoundError(
                f"no file {url}: point --data-path at a folder of estl data shard"
            )
    elif scheme == "s3":
        return _read_object(url, *rest.partition("/")[::2])
    elif scheme not in ("http", "https"):
        raise ValueError(f"{url}: shards are read from a folder, http://, https:// or s3://")
    with wds.gopen(url) as stream:
        return bytes(stream.read())


def _read_object(url: str, bucket: str, key: str) -> bytes:
    try:
        from minio.error import MinioException, S3Error
        from urllib3.exceptions import HTTPError
    except ImportError:
        raise ValueError(f"{url}: pip install 'estl[s3]' reads object stores") from None
    try:
        with _client().get_object(bucket, key) as response:
            return bytes(response.data)
    except S3Error as error:
        if error.code in ("NoSuchKey", "NoSuchBucket"):
            raise FileNotFoundError(
                f"no object {url}: point --data-path at s3://BUCKET/FOLDER of estl data shard"
            ) from None
        raise OSError(f"{url}: the store says {error.code}: {DENIED}") from None
    except (MinioException, HTTPError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise OSError(f"{url}: no answer from the store ({reason}): {DENIED}") from None


def _client() -> "Minio":
    """A client of the store, with connections of its own: forked processes may not share them."""
    from minio import Minio
    from minio.credentials import AWSConfigProvider, ChainedProvider, EnvAWSProvider

    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    endpoint = urlsplit(next((os.environ[name] for name in names if os.environ.get(name)), AMAZON))
    provider = ChainedProvider([EnvAWSProvider(), AWSConfigProvider()])
    try:
        signs = bool(provider.retrieve())
    except ValueError:  # there are no credentials
        signs = False
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    secure = endpoint.scheme != "http"
    return Minio(
        endpoint.netloc, credentials=provider if signs else None, region=region, secure=secure
    )
