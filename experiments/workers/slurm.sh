#!/bin/bash
# A study on a Slurm cluster: sixteen workers, one GPU each, on one study in PostgreSQL. Submit it again to add more, or to go on.
#
#     sbatch --export=ALL,MODEL=HuggingFaceTB/SmolLM2-135M,PGHOST=db.example.org,PGUSER=david slurm.sh
#
# The password comes from ~/.pgpass, which libpq reads, so that it stands in no command line.
#SBATCH --job-name=david
#SBATCH --array=0-15
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
# Two minutes before the time is up each worker ends: after the windows in hand, and what it has not finished comes again.
#SBATCH --signal=TERM@120
set -euo pipefail
srun david search "$MODEL" \
    --data Salesforce/wikitext:wikitext-2-raw-v1 --slice 'validation' --window 512 --windows 64 --held-out 64 \
    --storage "postgresql://$PGUSER@$PGHOST/david" --study "${STUDY:-david}" --trials 5000 --pruner race \
    --out "run-$SLURM_ARRAY_TASK_ID"
