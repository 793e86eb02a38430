"""What a run says about itself."""

import shlex

import tfcharrnn
from tfcharrnn.config import ModelConfig, TrainingConfig
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
