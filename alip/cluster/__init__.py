"""Work on many machines: cut into pieces, distributed by an engine, collected in one list."""
