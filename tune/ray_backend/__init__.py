"""Ray runs the processes of a sweep, on one machine or on several. The only package that imports ray."""
