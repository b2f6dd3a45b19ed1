"""The plan as a JSON file: what a store must hold, to be checked against what it does hold.

    {"format": {"name": ..., "version": ...}, "cache_id": ..., "identity": {...},
     "shards": [{"bucket": ..., "number": ..., "records": ..., "sha256": ...}, ...]}

`sha256` covers what the shard's commit says about its records: slots, image ids, views, seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage import canonical, checksums
from storage.commit import record_entries
from storage.errors import FormatError
from storage.index import Index, ShardTable
from storage.manifest import Manifest, check_version
from storage.schema import FORMAT_NAME, FORMAT_VERSION, ShardId, check_bucket_name, check_count


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan_to_json` wrote. `shards` maps each shard to the digest of its records."""

    cache_id: str
    identity: Mapping[str, Any]
    shards: Mapping[ShardId, str]


def plan_to_json(manifest: Manifest, index: Index) -> dict[str, Any]:
    """Describe what a store of this manifest and index must hold, for `verify --expect`."""
    table = ShardTable(index, manifest.shard_records)
    return {
        "format": {"name": FORMAT_NAME, "version": FORMAT_VERSION},
        "cache_id": manifest.cache_id,
        "identity": manifest.identity,
        "shards": [
            {
                "bucket": shard.bucket,
                "number": shard.number,
                "records": len(table.records_of(shard)),
                "sha256": records_digest(table, shard),
            }
            for shard in table.shards
        ],
    }


def plan_from_json(value: Any, what: str) -> Plan:
    """Read what `plan_to_json` wrote.

    Raises:
        FormatError: it is something else.
        VersionError: of a newer format.
    """
    check_version(value, what)
    try:
        shards = {}
        for entry in value["shards"]:
            number = check_count("number", entry["number"], 0, 1 << 32)
            shards[ShardId(check_bucket_name(entry["bucket"]), number)] = str(entry["sha256"])
        return Plan(cache_id=value["cache_id"], identity=dict(value["identity"]), shards=shards)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{what}: not a plan ({error})") from error


def records_digest(table: ShardTable, shard: ShardId) -> str:
    """SHA-256 of what a shard's commit says about its records."""
    entries = record_entries(table.index, table.records_of(shard))
    return checksums.sha256(canonical.dump(entries))
