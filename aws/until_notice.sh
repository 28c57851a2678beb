#!/bin/bash
# Run a command until AWS gives notice that it takes this spot instance away, two minutes before it does;
# then end the command by SIGTERM. `ray start --block` drains its node on SIGTERM, and workers there save
# a checkpoint.
#
#   until_notice.sh ray start --address=… --block
#
# The notice: "Spot Instance interruption notices" in the EC2 User Guide; before it, a 404.
metadata=${METADATA:-http://169.254.169.254}/latest
"$@" &
command=$!
while kill -0 "$command" 2>/dev/null; do
  token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token")
  if curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/spot/instance-action"; then
    kill -TERM "$command"
    break
  fi
  sleep "${POLL_SECONDS:-5}"
done
wait "$command"
