"""One study that any number of processes on any number of machines work on: `hypergrad sweep`."""
