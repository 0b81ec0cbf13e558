"""The file layer: every byte that reaches a disk passes here.  It knows nothing of pickles."""
