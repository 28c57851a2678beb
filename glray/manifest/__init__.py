"""What starts a cluster (a RayJob, Ray's cluster launcher, a Slurm script): read offline and
compared with the pipeline that is to run there."""
