"The command `miniai`, used as a person would: the installed script, in a process of its own."
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch

MINIAI = Path(sys.executable).with_name("miniai")

def notebook(path, *sources):
    "Write a small notebook with one code cell per source."
    cells = [{"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": s} for i, s in enumerate(sources)]
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}))
    return path

def miniai(*words, cwd=None, **env):
    done = subprocess.run([str(MINIAI), *map(str, words)], capture_output=True, text=True, cwd=cwd, env={**os.environ, **env}, timeout=120)
    return done.returncode, done.stdout, done.stderr

def worked():
    "Seconds that processors have worked for the processes we waited for; what others do in the meantime does not count."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

def printed(path):
    "Everything the saved cells of a notebook printed."
    cells = json.loads(path.read_text())["cells"]
    return "".join("".join(o.get("text", [])) for c in cells for o in c["outputs"])

@pytest.fixture
def nbs(tmp_path):
    folder = tmp_path/"nbs"
    folder.mkdir()
    notebook(folder/"01_fine.ipynb", "print(6*7)")
    notebook(folder/"02_wrong.ipynb", "y = 1", "assert y == 2, 'one is not two'")
    notebook(folder/"03_slow.ipynb", "print('quick')", "#| slow\nprint('at length')")
    return folder

def test_help_names_the_commands():
    for words in ((), ("--help",)):
        status, out, err = miniai(*words)
        assert status == 0 and err == ""
        assert all(name in out for name in ("run", "train", "sample", "checkpoint", "bench", "version")) and "INFO" not in out

def test_help_of_run_names_the_options():
    status, out, _ = miniai("run", "--help")
    assert status == 0 and all(f"--{o}" in out for o in ("save", "flags", "html", "timeout", "workers"))

def test_version():
    import miniai as package
    for word in ("version", "--version"): assert miniai(word)[:2] == (0, f"miniai {package.__version__}\n")

@pytest.mark.parametrize("words,names", [
    (("rnu",), ["rnu", "run", "bench"]),
    (("run", "no_such_chapter"), ["no_such_chapter", "01_fine"]),
    (("run", "fien"), ["fien", "01_fine"]),
    (("run", "--sav"), ["--sav"]),
    (("run", "--flags", "fast"), ["fast", "slow"]),
    (("run", "--timeout", "soon"), ["soon"]),
    (("run", "--workers", "-1"), ["-1"]),
    (("run", "--workers", "1.5"), ["whole number", "1.5"]),
    (("run", "--save", "01"), ["--save", "before the options"]),
    (("run", "--nbs", "5"), ["no notebooks in 5"]),
    (("run", "--nbs"), ["--nbs wants a folder"]),
    (("--verison",), ["--verison", "miniai --help"]),
    (("run", "--html"), ["--html"]),
    (("bench",), ["name"]),
    (("bench", "sorting"), ["sorting", "matmul", "cluster", "backprop"]),
    (("bench", "[1]"), ["[1]", "matmul"]),
    (("bench", "matmul", "--ot", "x"), ["--ot"]),
    (("bench", "matmul", "--out"), ["--out wants a folder"]),
    (("bench", "matmul", "cluster"), ["cluster"]),
    (("version", "now"), ["now"]),
    (("train",), ["recipe"]),
    (("train", "cats"), ["cats", "fashion_mnist", "mnist", "ddpm"]),
    (("train", "ddpm", "--source", "cats"), ["--source", "cats", "fashion_mnist"]),
    (("train", "[1]"), ["[1]", "mnist"]),
    (("train", "mnist", "--epochs", "0"), ["--epochs", "at least 1", "got 0"]),
    (("train", "mnist", "--epochs", "many"), ["--epochs", "'many'"]),
    (("train", "mnist", "--arch", "transformer"), ["--arch", "transformer", "resnet"]),
    (("train", "mnist", "--lrr", "0.1"), ["--lrr", "--lr"]),
    (("train", "mnist", "--out"), ["--out wants a text"]),
    (("train", "mnist", "--out", "nbs/01_fine.ipynb"), ["01_fine.ipynb", "a file"]),
    (("train", "mnist", "--resume", "yes"), ["--resume", "yes"]),
    (("train", "mnist", "fashion_mnist"), ["fashion_mnist"]),
    (("sample",), ["subject"]),
    (("sample", "cats"), ["no model 'cats'", "fashion", "mnist", "words", "a prompt stands in quotes", "miniai sample words --prompt"]),
    (("sample", "a", "red", "seven"), ["no model 'a'", "a prompt stands in quotes"]),
    (("sample", "  "), ["--prompt wants a text that says what to draw", "'  '"]),
    (("sample", "words"), ["--prompt is missing"]),
    (("sample", "a red seven", "--prompt", "a star"), ["--prompt was said already", "a red seven"]),
    (("sample", "a red seven", "--n", "1,2"), ["--n", "'1,2'"]),
    (("sample", "a red seven", "--model"), ["--model wants a text", "True"]),
    (("sample", "a red seven", "--label", "7"), ["--label", "--prompt"]),
    (("checkpoint", "now"), ["now"]),
    (("sample", "fashion", "--label", "boots"), ["no label 'boots'", "Ankle boot"]),
    (("sample", "fashion", "--label"), ["expected a label", "Ankle boot", "got none"]),
    (("sample", "mnist", "--label", "10"), ["10", "nine", "from 0 to 9"]),
    (("sample", "fashion", "--sampler", "magic"), ["--sampler", "magic", "heun"]),
    (("sample", "fashion", "--steps", "0"), ["--steps", "at least 1", "got 0"]),
    (("sample", "fashion", "--steps", "many"), ["--steps", "many"]),
    (("sample", "fashion", "--guidance", "-1"), ["--guidance", "-1"]),
    (("sample", "fashion", "--colour", "red"), ["--colour", "--label"]),
    (("sample", "mnist", "7"), ["7"]),
])
def test_mistakes_are_one_line(nbs, words, names):
    before = sorted(nbs.parent.iterdir())
    status, out, err = miniai(*words, cwd=nbs.parent)
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("miniai: "), err
    assert all(name in err for name in names), err
    assert sorted(nbs.parent.iterdir()) == before # nothing was begun

def test_missing_folder(tmp_path):
    status, out, err = miniai("run", "--nbs", tmp_path/"nowhere")
    assert status == 2 and err.count("\n") == 1 and "nowhere" in err

def test_run_one_chapter_by_any_name(nbs):
    for name in ("01_fine", "01", "1", "fine", nbs/"01_fine.ipynb"):
        status, out, err = miniai("run", name, cwd=nbs.parent)
        assert status == 0 and err == "" and "01_fine" in out and "02_wrong" not in out, out + err

def test_failure_shows_cell_and_reason_and_the_rest_runs(nbs):
    status, out, err = miniai("run", cwd=nbs.parent)
    assert status == 1 and "one is not two" in out and "assert y == 2" in out
    assert "Traceback" not in err and "01_fine" in out and "03_slow" in out

def test_output_to_a_file_has_no_control_characters(nbs):
    _, out, _ = miniai("run", "01", "02", cwd=nbs.parent)
    assert "\x1b" not in out and "\r" not in out

def test_save_and_flags(nbs):
    before = (nbs/"01_fine.ipynb").read_text()
    assert miniai("run", "01", cwd=nbs.parent)[0] == 0
    assert (nbs/"01_fine.ipynb").read_text() == before
    assert miniai("run", "01", "03", "--save", cwd=nbs.parent)[0] == 0
    assert printed(nbs/"01_fine.ipynb") == "42\n" and printed(nbs/"03_slow.ipynb") == "quick\n"
    assert miniai("run", "slow", "--save", "--flags", "slow", cwd=nbs.parent)[0] == 0
    assert printed(nbs/"03_slow.ipynb") == "quick\nat length\n"
    assert sorted(p.name for p in nbs.iterdir()) == ["01_fine.ipynb", "02_wrong.ipynb", "03_slow.ipynb"]

def test_html(nbs, tmp_path):
    assert miniai("run", "01", "--html", tmp_path/"pages", cwd=nbs.parent)[0] == 0
    assert "42" in (tmp_path/"pages"/"01_fine.html").read_text()

def test_html_into_a_file(nbs, tmp_path):
    (tmp_path/"pages").write_text("a file")
    status, _, err = miniai("run", "01", "--html", tmp_path/"pages", cwd=nbs.parent)
    assert status == 1 and "pages" in err and "Traceback" not in err, err

def test_bench_into_a_file_fails_before_it_measures(tmp_path):
    (tmp_path/"results").write_text("a file")
    status, out, err = miniai("bench", "matmul", "--out", tmp_path/"results")
    assert status == 1 and out == "" and "results" in err and err.count("\n") == 1, err

def test_timeout_names_the_cell(nbs):
    notebook(nbs/"04_endless.ipynb", "x = 1", "while True: pass")
    status, out, err = miniai("run", "endless", "--timeout", "1", cwd=nbs.parent)
    assert status == 1 and err == "" and "04_endless, cell 1 failed" in out and "more than 1 s" in out, out + err

SMALL = ("--arch", "cnn", "--images", "600", "--bs", "50", "--epochs", "2")

def test_train_leaves_its_results_and_is_not_overwritten(tmp_path):
    words = ("train", "mnist", *SMALL, "--out", tmp_path/"run")
    status, out, err = miniai(*words)
    assert status == 0 and "Traceback" not in err and "\r" not in out, out + err
    assert sorted(p.name for p in (tmp_path/"run").iterdir()) == ["checkpoint.pt", "log.csv", "model.safetensors", "options.json", "plot.png"]
    log = (tmp_path/"run"/"log.csv").read_text().splitlines()
    assert log[0] == "epoch,split,loss,accuracy,seconds" and [line.split(",")[1] for line in log[1:]] == ["train", "valid"]*2 + ["valid_tta"]
    before = {p.name: p.read_bytes() for p in (tmp_path/"run").iterdir()}
    for more, says in (((), "--resume"), (("--resume", "--lr", "0.5"), "lr was 0.01 and is 0.5")):
        status, out, err = miniai(*words, *more)
        assert status == 2 and out == "" and err.count("\n") == 1 and says in err, err
    assert {p.name: p.read_bytes() for p in (tmp_path/"run").iterdir()} == before
    assert miniai(*words, "--resume")[0] == 0 # there is nothing left to train
    assert (tmp_path/"run"/"model.safetensors").read_bytes() == before["model.safetensors"]

def test_help_of_a_training_names_its_options():
    status, out, err = miniai("train", "fashion_mnist", "--help")
    assert status == 0 and err == "" and all(f"--{o}" in out for o in ("out", "epochs", "arch", "seed", "resume", "lr"))

def test_sample_draws_the_same_from_the_same_seed(tmp_path):
    words = ("sample", "mnist", "--label", "seven", "--n", "2", "--steps", "2", "--seed", "5")
    for name in ("a.png", "new/b.png"):
        status, out, err = miniai(*words, "--out", tmp_path/name, "--animate")
        assert status == 0 and "Traceback" not in err and f"saved {tmp_path/name}: 2 pictures" in out, out + err
    assert (tmp_path/"a.png").read_bytes() == (tmp_path/"new"/"b.png").read_bytes()
    assert (tmp_path/"a.gif").read_bytes() == (tmp_path/"new"/"b.gif").read_bytes()
    assert miniai(*words[:-1], "6", "--out", tmp_path/"c.jpg")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "a.png", "c.jpg", "new"]

@pytest.fixture
def no_network(tmp_path):
    "Environment of a process in which nothing reaches a network."
    (tmp_path/"sitecustomize.py").write_text("import socket\ndef refuse(*args, **kwargs): raise OSError('no network here')\nsocket.socket.connect = socket.create_connection = refuse\n")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]), "MINIAI_HOME": str(tmp_path/"home")}
    tried = subprocess.run([sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"], env=os.environ | env, capture_output=True, text=True)
    assert "no network here" in tried.stderr, tried.stderr
    return env

def test_sample_boots_without_a_network(tmp_path, no_network):
    start = worked()
    words = "sample fashion --n 16 --steps 20 --sampler heun --seed 0 --out".split()
    status, out, err = miniai(*words, tmp_path/"boots.png", "--label", "ankle boot", **no_network)
    assert status == 0 and "16 pictures" in out, err
    assert worked() - start < 60 # some 12 s where nothing else runs, of one processor or shared by two
    from miniai.training.recipes import load_classifier, shipped
    paper = np.asarray(PIL.Image.open(tmp_path/"boots.png"))
    assert paper.shape == (4*(28*4 + 2) + 2,)*2
    classifier, prepare = load_classifier(shipped("fashion_classifier"))
    corners = [2 + k*(28*4 + 2) for k in range(4)]
    boots = torch.stack([torch.tensor(255 - paper[y:y + 28*4:4, x:x + 28*4:4]) for y in corners for x in corners]) # black on white, each point four by four
    with torch.no_grad(): assert (classifier(prepare(boots)).argmax(1) == 9).sum() >= 14 # 9 is Ankle boot

def test_checkpoint_is_a_folder_that_is_there():
    from miniai.diffusion.pipeline import shipped_checkpoint
    assert miniai("checkpoint") == (0, f"{shipped_checkpoint()}\n", "") and (shipped_checkpoint()/"model_index.json").is_file()
    assert miniai("checkpoint", "scenes") == (0, f"{shipped_checkpoint('scenes')}\n", "") and shipped_checkpoint("scenes") != shipped_checkpoint()

def test_help_of_sample_tells_how_to_draw_from_words():
    status, out, err = miniai("sample", "--help")
    assert status == 0 and err == "" and 'miniai sample "SEVERAL WORDS"' in out and all(name in out for name in ("fashion", "mnist", "words"))
    for word in ("words", "a red seven"):
        status, out, err = miniai("sample", word, "--help")
        assert status == 0 and err == "" and all(f"--{o}" in out for o in ("prompt", "negative", "n", "steps", "guidance", "seed", "sampler", "model", "animate", "out"))

def drawn(prompts, folder=None, scale=4, **options):
    "The sheet that a drawing should give."
    from miniai.diffusion.pipeline import StableDiffusion
    from miniai.tools.plotting import sheet
    return sheet(StableDiffusion.from_pretrained(folder).draw(prompts, bar=iter, **options), scale=scale)

def test_sample_words_without_a_network(tmp_path, no_network):
    prompt = "a thick red seven on a pale blue background"
    start = worked()
    status, out, err = miniai("sample", prompt, "--out", tmp_path/"seven.png", **no_network)
    assert status == 0 and f"saved {tmp_path/'seven.png'}: 1 picture in" in out and "Traceback" not in err, err
    assert worked() - start < 60 # some 7 s where nothing else runs, of one processor or shared by two
    assert PIL.Image.open(tmp_path/"seven.png").tobytes() == drawn(prompt).tobytes()

def test_sample_words_hands_on_every_option(tmp_path):
    from miniai.diffusion.pipeline import shipped_checkpoint
    shutil.copytree(shipped_checkpoint(), tmp_path/"model")
    weights = tmp_path/"model"/"vae"/"diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load(weights.read_bytes())
    safetensors.torch.save_file(tensors | {"decoder.conv_out.bias": tensors["decoder.conv_out.bias"] + 0.5}, weights)
    status, out, err = miniai("sample", "a red 7, bold", "--n", "3", "--steps", "4", "--guidance", "2.5", "--negative", "1,2", "--seed", "7", "--sampler", "heun", "--model", tmp_path/"model", "--animate", cwd=tmp_path)
    assert status == 0 and "saved words.png: 3 pictures" in out and "saved words.gif" in out, out + err
    wanted = drawn(["a red 7, bold"]*3, tmp_path/"model", steps=4, guidance=2.5, negative="1,2", seed=7, sampler="heun")
    assert PIL.Image.open(tmp_path/"words.png").tobytes() == wanted.tobytes()
    with PIL.Image.open(tmp_path/"words.gif") as film: assert (film.n_frames, film.size) == (4, wanted.size)
    assert miniai("sample", "words", "--prompt", "star", "--steps", "1", "--out", "star.jpg", cwd=tmp_path)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "star.jpg", "words.gif", "words.png"]

def test_sample_a_scene(tmp_path):
    from miniai.diffusion.pipeline import shipped_checkpoint
    prompt = "a red seven above a small blue star"
    assert miniai("sample", prompt, "--model", "scenes", "--steps", "2", "--out", tmp_path/"scene.png")[0] == 0
    wanted = drawn(prompt, shipped_checkpoint("scenes"), scale=2, steps=2)
    assert PIL.Image.open(tmp_path/"scene.png").tobytes() == wanted.tobytes() and wanted.size == (132, 132)

def without_weights(folder):
    for path in folder.rglob("*.safetensors"): path.rename(path.with_suffix(".bin"))

def without_a_tensor(folder):
    path = folder/"unet"/"diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    safetensors.torch.save_file({k: v for k, v in tensors.items() if k != "conv_out.bias"}, path)

def cut_short(folder):
    path = folder/"text_encoder"/"model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

@pytest.mark.parametrize("change,says", [(shutil.rmtree, ["model"]), (lambda folder: (folder/"model_index.json").unlink(), ["model_index.json", "no such file"]), (without_weights, ["only pickles"]),
                                         (without_a_tensor, ["conv_out.bias is missing"]), (cut_short, ["text_encoder/model.safetensors", "damaged"])])
def test_sample_with_what_is_no_model(tmp_path, change, says):
    from miniai.diffusion.pipeline import shipped_checkpoint
    change(Path(shutil.copytree(shipped_checkpoint(), tmp_path/"model")))
    status, out, err = miniai("sample", "a red seven", "--model", tmp_path/"model", "--out", "seven.png", cwd=tmp_path)
    assert status == 1 and out == "" and err.count("\n") == 1 and err.startswith("miniai: ") and all(word in err for word in says), err
    assert not (tmp_path/"seven.png").exists()

def test_a_prompt_that_is_too_long_is_cut_with_a_line(tmp_path):
    status, out, err = miniai("sample", "a red seven " + "and a star "*40, "--steps", "1", "--out", tmp_path/"seven.png")
    lines = [line for line in err.splitlines() if line.startswith("miniai: ")]
    assert status == 0 and (tmp_path/"seven.png").exists() and len(lines) == 1 and "can be read; cut off: " in lines[0] and "Warning" not in err, err

@pytest.mark.parametrize("subject,out,says", [("mnist", "held", "endings"), ("mnist", "held.png", "is a folder"), ("mnist", "file/x.png", "file is a file"), ("mnist", "x.docx", "endings"), ("mnist", "film.gif", "endings"), ("mnist", "film.png", "film.gif is a folder"),
                                              ("a red seven", "file/x.png", "file is a file"), ("a red seven", "film.png", "film.gif is a folder")])
def test_sample_into_what_is_no_picture_file(tmp_path, subject, out, says):
    for folder in ("held", "held.png") + ("film.gif",)*(out == "film.png"): (tmp_path/folder).mkdir()
    (tmp_path/"file").write_text("a file")
    before = sorted(p.name for p in tmp_path.iterdir())
    status, said, err = miniai("sample", subject, "--n", "1", "--steps", "1", "--animate", "--out", tmp_path/out)
    assert status == 1 and said == "" and err.count("\n") == 1 and says in err, err
    assert sorted(p.name for p in tmp_path.iterdir()) == before

@pytest.mark.skipif(os.name != "posix", reason="signals as on Unix")
def test_interrupted_training_goes_on(tmp_path):
    words = ("train", "mnist", *SMALL[:-1], "40")
    process = subprocess.Popen([str(MINIAI), *words, "--out", str(tmp_path/"a")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while not (tmp_path/"a"/"checkpoint.pt").exists() and time.time() < deadline: time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert not (tmp_path/"a"/"model.safetensors").exists()
    assert miniai(*words, "--out", tmp_path/"a", "--resume")[0] == 0
    assert miniai(*words, "--out", tmp_path/"b")[0] == 0
    assert (tmp_path/"a"/"model.safetensors").read_bytes() == (tmp_path/"b"/"model.safetensors").read_bytes()

def test_data_folder_may_be_relative(nbs):
    notebook(nbs/"04_where.ipynb", "import os; assert os.path.isabs(os.environ['MINIAI_DATA'])")
    assert miniai("run", "where", cwd=nbs.parent, MINIAI_DATA="data")[0] == 0

def kernels_of(pid):
    "Processes that descend from `pid`."
    import psutil
    return psutil.Process(pid).children(recursive=True)

@pytest.mark.skipif(os.name != "posix", reason="signals as on Unix")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing_behind(nbs, sent):
    path = notebook(nbs/"05_long.ipynb", "print('begun')", f"open({str(nbs.parent/'begun')!r}, 'w').close(); import time; time.sleep(60)")
    before = path.read_text()
    process = subprocess.Popen([str(MINIAI), "run", "long", "--save"], cwd=nbs.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while not (nbs.parent/"begun").exists() and time.time() < deadline: time.sleep(0.1)
    children = kernels_of(process.pid)
    assert children, "the chapter should run in a process of its own"
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + sent and "Traceback" not in err, err
    deadline = time.time() + 10
    while any(c.is_running() for c in children) and time.time() < deadline: time.sleep(0.1)
    assert not any(c.is_running() for c in children)
    assert path.read_text() == before
    assert sorted(p.name for p in nbs.iterdir()) == ["01_fine.ipynb", "02_wrong.ipynb", "03_slow.ipynb", "05_long.ipynb"]
