"""What a storage server keeps blocks on: one file per kind of medium."""
