#!/bin/sh
# Called by CRIU at each stage of a dump, in the sandbox. What the tree keeps in /dev/shm, and the names that
# CRIU links there for the files that the tree has deleted, are gone when the dump has ended: kept here.
# The folder itself stays private: /dev/shm is open to everybody.
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
kept="$CRTOOLS_IMAGE_DIR/../shm"
cp --archive --sparse=always /dev/shm/. "$kept" && exec chmod 700 "$kept"
