"""Virtual block devices: what guests find in the store and in their rings, and how it reaches the disks."""
