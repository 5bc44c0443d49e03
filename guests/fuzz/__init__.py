"""The parts of the guest `mmufuzz`: its data, its routines, its operations by kind."""
