"""Disk scheduling without guests: the real schedulers and the real emulated disk, with workloads as code."""
