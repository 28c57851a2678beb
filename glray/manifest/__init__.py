"""What starts a cluster (a RayJob, a file of Ray's cluster launcher, a Slurm script), read without a
cluster and compared with the pipeline that is to run there."""
