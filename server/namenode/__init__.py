"""The namenode: who is there, who may come in. The tree itself is C (native/src)."""
