-- Where a file lies, in full. Null in rows of former versions, until a storage process starts that knows its store. Never edit: add a migration.
ALTER TABLE files ADD COLUMN uri text;
CREATE INDEX files_without_uri ON files (file_id) WHERE uri IS NULL;
