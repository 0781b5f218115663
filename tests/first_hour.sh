#!/usr/bin/env bash
# The first hour of a new user, from the wheel: doctor, inspect, a run on files of the published formats with the
# world's base, its record, chat, export, the exported model loaded by transformers, and the logged one by MLflow.
#
#     bash tests/first_hour.sh FOLDER           # FOLDER must not exist; installs everything there, some gigabytes
#     SITE_PACKAGES=.venv/lib/python3.11/site-packages bash tests/first_hour.sh FOLDER   # with packages of another one
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
site=${SITE_PACKAGES:+$(cd "$SITE_PACKAGES" && pwd)}
mkdir "$1"
cd "$1"
unset PYTHONPATH

cp -rL "$root" source && rm -rf source/build source/.venv source/.git # setuptools builds inside its source
python3 -m venv venv
if [ -n "$site" ]; then
  echo "$site" > "$(venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/other.pth"
  "$site/../../../bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir . ./source
  venv/bin/python -m pip install --quiet --no-deps --force-reinstall ./sft_lab-*.whl
else
  venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir . ./source
  venv/bin/python -m pip install --quiet -c "$root/constraints.txt" ./sft_lab-*.whl
fi
rm -rf source
lab() { venv/bin/python -m sft_lab "$@"; }
venv/bin/python -c 'import sft_lab; assert "/venv/" in sft_lab.__file__, sft_lab.__file__'

mkdir -p data/gsm8k data/code_alpaca data/sharegpt
venv/bin/python - <<'PY'
import gzip, json
rows = [{"question": f"What is {n} plus {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(240)]
with gzip.open("data/gsm8k/train.jsonl.gz", "wt") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
code = [{"instruction": f"Print {n}.", "input": "", "output": f"print({n})"} for n in range(240)]
with open("data/code_alpaca/code_alpaca_2k.json", "w") as file:
    json.dump(code, file)
with gzip.open("data/sharegpt/sharegpt92k_sample.jsonl.gz", "wt") as file:
    for n in range(140):
        turns = [{"from": "human", "value": f"Say {n}."}, {"from": "gpt", "value": f"{n}!"}]
        file.write(json.dumps({"id": str(n), "conversations": turns}) + "\n")
PY
export SFT_LAB_DATA=$PWD/data
config=configs/real_files/sequential.yaml
lab doctor
lab inspect --config $config -n 1 > inspected.txt
lab fit --config $config --data.stages.{code,math,general}.max_steps=2
lab chat "sequential seed 0@code" "sequential seed 0@general" --prompt "What is 3 plus 4?" --max_new_tokens 24
lab export "sequential seed 0" --what merged --out model
grep -q '^## Abilities' model/README.md
venv/bin/python - <<'PY'
import sqlite3

import mlflow
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
asked = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is 3 plus 4?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**asked, max_new_tokens=24, do_sample=False)[0, asked["input_ids"].shape[1] :]
print("transformers:", tokenizer.decode(answer, skip_special_tokens=True))
mlflow.set_tracking_uri("sqlite:///mlruns/mlflow.db")
[logged] = mlflow.MlflowClient().search_logged_models([mlflow.get_experiment_by_name("sft_lab").experiment_id])
model = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
print("mlflow:", *model.predict([{"prompt": "What is 3 plus 4?"}], params={"max_new_tokens": 24}))
keys = {key for (key,) in sqlite3.connect("mlruns/mlflow.db").execute("select distinct key from metrics")}
assert {"ability/math", "ability/code", "ability/general"} <= keys, keys
[run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
files = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
assert "abilities.png" in files, files
PY
echo "first hour: done"
