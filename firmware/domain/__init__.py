"""Domains and their vCPUs: images, building, first registers, ends."""
