"""Guests that attack the hypervisor and their neighbours, one a class of historic hole."""
