#!/bin/sh
# Called by CRIU at each stage of a dump, in the sandbox. What the tree keeps in /dev/shm, and the names that
# CRIU links there for the files that the tree has deleted, are gone when the dump has ended: kept here.
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
exec cp --archive --sparse=always /dev/shm/. "$CRTOOLS_IMAGE_DIR/../shm"
