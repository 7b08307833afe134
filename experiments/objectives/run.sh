#!/usr/bin/env bash
# Runs the study of README.md: cold starts, runs, scores, table and picture. Takes some hours on two
# cores.
set -euo pipefail
export OMP_NUM_THREADS=1

train="tvg-train -m trainer=cpu seed=1,2,3"
$train experiment=demo_sft prompt=short,short_think rollout.max_new_tokens=32 'logger=[]' \
  'hydra.sweep.dir=runs/cold' 'hydra.sweep.subdir=${hydra:runtime.choices.prompt}_${seed}'

study="$train experiment=demo_study"
$study setting=baseline
$study 'reward=[iou_v2]' setting=iou_v2
$study objective.loss.kl_coef=0.04 setting=kl_0.04
$study model/adapter=lora objective.optimizer.lr=2e-3 setting=lora
$study prompt=short_think prompt_name=short_think rollout.max_new_tokens=32 setting=think
$study objective=grpo_token_mean,grpo,dr_grpo,dapo,gspo objective.num_updates=2 \
  trainer.max_steps=200 'setting=${hydra:runtime.choices.objective}'

exports=$(printf '%s,' runs/cold/*/export runs/study/*/*/export)
tvg-evaluate -m experiment=demo_evaluate "model.path=${exports%,}" rollout.max_new_tokens=32 \
  device=cpu 'logger=[]' hydra.sweep.dir=runs/scores 'hydra.sweep.subdir=${model.path}'
python "$(dirname "$0")/collect.py" runs
