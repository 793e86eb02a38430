"""What a run says about itself."""

import re
import shlex
import time

import tfcharrnn
from tfcharrnn.config import ModelConfig, TrainingConfig
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.training.progress import describe_dropout, describe_optimizer


def test_the_optimizer_is_described_with_what_is_not_zero():
    assert describe_optimizer(TrainingConfig()) == "adam, learning rate 0.001"
    cosine = TrainingConfig(optimizer="adamw", schedule="cosine", warmup_steps=50, average=0.99)
    assert describe_optimizer(cosine) == (
        "adamw, learning rate 0.001 falling to 0 of it by a cosine, 50 steps of warm-up, weight decay 0.1, average 0.99"
    )
    decayed = TrainingConfig(schedule="exponential", decay_rate=0.5, decay_after=3, warmup_steps=50)
    assert describe_optimizer(decayed) == "adam, learning rate 0.001 times 0.5 an epoch after 3"
    wsd = TrainingConfig(schedule="wsd", final_rate=0.1)
    assert describe_optimizer(wsd) == "adam, learning rate 0.001 falling to 0.1 of it in the last 20% of the steps"


def test_dropout_is_described_where_there_is_some():
    assert describe_dropout(ModelConfig(locked_dropout=True)) == ""
    config = ModelConfig(output_dropout=0.5, weight_drop=0.1, locked_dropout=True)
    assert describe_dropout(config) == "0.5 of the output, 0.1 of recurrent weights, locked"


def test_the_command_that_is_suggested_can_be_pasted(tmp_path, capsys):
    (tmp_path / "a text.txt").write_text("to be or not to be. " * 100)
    run_dir = tmp_path / "a run; of mine"
    tfcharrnn.train_model(run_dir, input=tmp_path / "a text.txt", hidden_size=4, seq_length=20, batch_size=8, steps=1)
    shown = capsys.readouterr().err
    assert "\noptimizer  adam, learning rate 0.001\n" in shown and "\ndropout " not in shown
    assert shlex.split(shown.splitlines()[-1])[-1] == f"--run_dir={run_dir}"


class Clock:
    """Takes the place of `time.perf_counter`; goes on by itself only so far that no interval is empty."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1e-6
        return self.now


def test_the_time_left_does_not_count_what_compiling_the_validation_took(tmp_path, capsys, monkeypatch):
    clock, predict = Clock(), CharRNN.losses_and_hits

    def compile_slowly(*arguments):  # Python runs it only to compile it
        clock.now += 100.0
        return predict(*arguments)

    class StepsOfASecond(tfcharrnn.Callback):
        def on_step(self, step):
            clock.now += 1.0

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(CharRNN, "losses_and_hits", compile_slowly)
    settings = {"hidden_size": 4, "seq_length": 20, "batch_size": 8, "steps": 10, "eval_every": 1}
    text = "to be or not to be. " * 100
    tfcharrnn.train_model(tmp_path / "run", text=text, **settings, callbacks=[StepsOfASecond()])
    assert 100.0 < clock.now < 200.0, "it is compiled once"
    left = re.findall(r"^step +(\d+) .* (\S+) left$", capsys.readouterr().err, re.MULTILINE)
    assert left == [(str(step), f"0:{10 - step:02d}") for step in range(3, 11)]  # from less, nothing is estimated
