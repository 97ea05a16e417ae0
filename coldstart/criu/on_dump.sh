#!/bin/sh -p
# Called by CRIU at each stage of a dump, in the sandbox. What the tree keeps in /dev/shm, and the names that
# CRIU links there for the files that the tree has deleted, are gone when the dump has ended: kept here.
# The folder itself stays private: /dev/shm is open to everybody. Regular files only: the tree may have put
# links and devices there. -p, since a shell gives up the effective uid if it is not the real one.
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
kept="$CRTOOLS_IMAGE_DIR/../shm"
cd /dev/shm && exec find . -maxdepth 1 -type f -exec \
    cp --no-dereference --preserve=mode,ownership,timestamps --sparse=always --target-directory="$kept" {} +
