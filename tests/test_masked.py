"""Addresses without what lets others in."""

import pytest

from cvt_cli.records import as_written, masked


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:pw@h/a.jpg?x=1&token=abc::in/b.jpg", "https://***@h/a.jpg?x=1&token=***::in/b.jpg"),
        ("https://key@h/", "https://***@h/"),
        ("ftp://a:b@h/x", "ftp://***@h/x"),
        ("s3://id:secret@bucket/x", "s3://***@bucket/x"),
        ("abfs://container@account.dfs/x", "abfs://container@account.dfs/x"),
        ("https://h/a?X-Amz-Signature=1a&X-Amz-Date=2&id=7", "https://h/a?X-Amz-Signature=***&X-Amz-Date=***&id=7"),
        ("https://h/a?X-Goog-Credential=x%2F&v=1", "https://h/a?X-Goog-Credential=***&v=1"),
        ("https://h/a?se=2026&sig=q%3D&sp=r", "https://h/a?se=***&sig=***&sp=r"),
        ("https://h/a?se=2026&sp=r", "https://h/a?se=2026&sp=r"),
        ("https://h/a?Expires=1&Signature=x&Key-Pair-Id=K", "https://h/a?Expires=***&Signature=***&Key-Pair-Id=***"),
        ("https://h/a?ACCESS_TOKEN=x&api_key=y", "https://h/a?ACCESS_TOKEN=***&api_key=***"),
        ("https://h/a@b.jpg?key=photos/a.jpg", "https://h/a@b.jpg?key=photos/a.jpg"),
        ("see https://h/a?token=abc: 404", "see https://h/a?token=***: 404"),
        ('{"a": "https://h/?sig=1"}', '{"a": "https://h/?sig=***"}'),
        ("photos/a?token=b.jpg", "photos/a?token=b.jpg"),
    ],
)  # fmt: skip
def test_masked(address: str, shown: str) -> None:
    assert masked(address) == masked(shown) == as_written(address) == shown
