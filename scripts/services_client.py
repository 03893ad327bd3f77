"""The part of scripts/services that talks to the services; runs in its venv.

A Python client of 0.2 s instead of Kafka's own tools, which start a JVM for every question.

    services_client.py wait-kafka BROKER                    one probe: exit 0 when it can really be used
    services_client.py wait-s3 HOST:PORT BUCKET KEY SECRET  one probe
    services_client.py wait-azblob HOST:PORT CONTAINER ACCOUNT KEY  one probe; creates the container
    services_client.py wait-http URL                        one probe: exit 0 when it answers with success
    services_client.py topic BROKER create NAME PARTITIONS [CONFIG=VALUE ...]
    services_client.py topic BROKER delete NAME
    services_client.py group BROKER describe GROUP
"""

import sys
import time

TIMEOUT = 10.0
# Of one probe: between probes the caller looks whether the broker has died.
PROBE_TIMEOUT = 2.0


def admin(broker):
    from confluent_kafka.admin import AdminClient

    # The default reconnect back-off grows to 10 s, longer than a broker takes to come up. stderr would be flooded by
    # refused connections while we wait; every call here reports its own failure.
    conf = {"bootstrap.servers": broker, "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100, "log_level": 0}
    return AdminClient(conf)


def wait_kafka(broker):
    """The broker answers, leads every partition, and its group coordinator has loaded.

    Asking for a group's offsets makes it create __consumer_offsets, so that the first test's join does not wait."""
    from confluent_kafka import ConsumerGroupTopicPartitions

    client = admin(broker)
    metadata = client.list_topics(timeout=PROBE_TIMEOUT)
    led = all(p.leader >= 0 for t in metadata.topics.values() for p in t.partitions.values())
    for future in client.list_consumer_group_offsets([ConsumerGroupTopicPartitions("services-probe")]).values():
        future.result(PROBE_TIMEOUT)
    return 0 if led and metadata.brokers else 1


def wait_s3(endpoint, bucket, key, secret):
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileType, S3FileSystem

    s3 = S3FileSystem(
        endpoint_override=endpoint,
        scheme="http",
        region="us-east-1",
        access_key=key,
        secret_key=secret,
        # A probe that retries by itself, with a growing back-off, would be late to see that the store is up.
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=1),
        connect_timeout=PROBE_TIMEOUT,
        request_timeout=PROBE_TIMEOUT,
    )
    if s3.get_file_info(bucket).type != FileType.Directory:
        return 1
    # The gateway answers before it has a volume to write to: only a write proves it.
    with s3.open_output_stream(f"{bucket}/.probe") as out:
        out.write(b"probe")
    s3.delete_file(f"{bucket}/.probe")
    return 0


def wait_azblob(endpoint, container, account, key):
    from pyarrow.fs import AzureFileSystem

    azure = AzureFileSystem(
        account_name=account,
        account_key=key,
        blob_storage_authority=endpoint,
        blob_storage_scheme="http",
        dfs_storage_authority=endpoint,
        dfs_storage_scheme="http",
    )
    azure.create_dir(container)
    return 0


def wait_http(url):
    from urllib.request import urlopen

    with urlopen(url, timeout=PROBE_TIMEOUT) as answer:
        answer.read()
    return 0


def wait_until(what, condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"services: {what} not seen within {TIMEOUT:.0f} s")
        time.sleep(0.01)


def topic(broker, action, name, partitions="1", *configs):
    from confluent_kafka.admin import NewTopic

    client = admin(broker)
    if action == "create":
        config = dict(c.split("=", 1) for c in configs)
        new = NewTopic(name, num_partitions=int(partitions), replication_factor=1, config=config)
        client.create_topics([new])[name].result(TIMEOUT)

        # The controller answers before the broker has elected leaders: a producer could still be refused.
        def led():
            found = client.list_topics(timeout=TIMEOUT).topics.get(name)
            return (
                found
                and len(found.partitions) == int(partitions)
                and all(p.leader >= 0 for p in found.partitions.values())
            )

        wait_until(f"topic {name}", led)
    elif action == "delete":
        client.delete_topics([name])[name].result(TIMEOUT)
        wait_until(f"end of topic {name}", lambda: name not in client.list_topics(timeout=TIMEOUT).topics)
    else:
        sys.exit(f"services: topic create or delete, not '{action}'")
    return 0


def group(broker, action, name):
    from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
    from confluent_kafka.admin import OffsetSpec

    if action != "describe":
        sys.exit(f"services: group describe, not '{action}'")
    client = admin(broker)
    described = client.describe_consumer_groups([name])[name].result(TIMEOUT)
    committed = client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(name)])[name].result(TIMEOUT)
    commits = {(p.topic, p.partition): p.offset for p in committed.topic_partitions}
    owners = {(p.topic, p.partition): m for m in described.members for p in m.assignment.topic_partitions}
    rows = sorted(commits.keys() | owners.keys())
    ends = client.list_offsets({TopicPartition(*row): OffsetSpec.latest() for row in rows}) if rows else {}
    ends = {(p.topic, p.partition): future.result(TIMEOUT).offset for p, future in ends.items()}
    print(f"group={name} state={described.state.name} members={len(described.members)}")
    print("topic\tpartition\tcommitted\tend\tlag\tmember")
    for row in rows:
        offset = commits.get(row, -1)
        # Without a commit the lag is that of a group which starts at the earliest offset of a whole partition.
        member = owners[row].client_id if row in owners else "-"
        print(*row, offset if offset >= 0 else "-", ends[row], ends[row] - max(offset, 0), member, sep="\t")
    return 0


def main():
    commands = {"wait-kafka": wait_kafka, "wait-s3": wait_s3, "topic": topic, "group": group}
    commands |= {"wait-azblob": wait_azblob, "wait-http": wait_http}
    try:
        sys.exit(commands[sys.argv[1]](*sys.argv[2:]))
    except Exception as error:  # The message of the service is the report; a stack trace would bury it.
        sys.exit(f"services: {' '.join(sys.argv[1:])}: {error}")


main()
