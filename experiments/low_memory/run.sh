#!/usr/bin/env bash
# Runs the study of README.md: run.sh COLD_START_EXPORT STEPS PROMPTS. Needs torchao and the package
# tvg. bfloat16 is slow on CPUs: a step of 24 prompts takes 3 CPU seconds, in float32 less than one.
set -euo pipefail
export OMP_NUM_THREADS=1
here=$(cd "$(dirname "$0")" && pwd)
cold=$1
size=("trainer.max_steps=$2" "data.batch_size=$3" "objective.micro_batch_size=$3")

for seed in 1 2 3; do
  for setting in float32 stochastic_8bit host_masters; do
    run=runs/low_memory/$setting/seed_$seed
    if [ ! -e "$run/export" ]; then
      python "$here/train.py" "$setting" "$seed" "$cold" "$run" "${size[@]}"
    fi
    if [ ! -e "$run/scores/metrics.json" ]; then
      python -m tvg.cli.evaluate experiment=demo_evaluate "model.path=$run/export" device=cpu \
        rollout.max_new_tokens=32 'logger=[]' "hydra.run.dir=$run/scores"
    fi
  done
done
python "$here/collect.py" runs/low_memory
