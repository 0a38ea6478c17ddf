"""Plumbing: files that survive a kill, a lock, threads, processes. It imports no other room."""
