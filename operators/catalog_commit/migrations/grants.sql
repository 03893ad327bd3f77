-- What a role that runs ingest, storage, audit and janitor needs, and no more: it cannot change the tables, nor what is recorded in
-- commits, coverage and files. {schema} and {role} are replaced by `openwit-ingest migrate --grant ROLE`.
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};
GRANT INSERT ON {schema}.commits, {schema}.files, {schema}.partitions, {schema}.coverage, {schema}.index_queue, {schema}.topics TO {role};
-- The lock of a partition; files that retention takes out, or that former versions wrote without their URI; topics that a person moves to
-- another group.
GRANT UPDATE (commits) ON {schema}.partitions TO {role};
GRANT UPDATE (state, uri) ON {schema}.files TO {role};
GRANT UPDATE (index_name, signal) ON {schema}.topics TO {role};
-- Coverage rows that touch are replaced by one; files go with retention, index work when it is done.
GRANT DELETE ON {schema}.coverage, {schema}.files, {schema}.index_queue TO {role};
