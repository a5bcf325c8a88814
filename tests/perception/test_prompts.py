"""Prompts with pictures and sounds: places, order, files."""

from __future__ import annotations

import json
import struct
import subprocess
import wave

import numpy as np
import pytest
from click.testing import CliRunner

import phiconv
from make_multimodal import picture, sound
from phiconv.cli import main
from phiconv.conversion.source import open_model
from phiconv.errors import InputError, PhiconvError, UsageError
from phiconv.forward.encoders import features
from phiconv.forward.interpreter import compute
from phiconv.forward.sounds import sound_features
from phiconv.perception.files import read_picture, read_sound
from phiconv.perception.pictures import prepare
from phiconv.perception.prompts import make_prompt
from phiconv.perception.sounds import log_mel
from phiconv.tokenization.encoder import encode


@pytest.fixture(scope="module")
def opened(make_multimodal, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        kind: open_model(make_multimodal(folder / kind, kind, seed=3))
        for kind in ("phi3v", "phi4mm", "phi4-siglip")
    }


def letters(text):
    return [ord(letter) for letter in text]


ONE, TWO = picture(1, 60, 90), picture(2, 90, 50)


def test_places_are_where_the_tags_are(opened):
    senses = opened["phi3v"].senses
    first, second = (features(senses.vision, prepare(senses, each)) for each in (ONE, TWO))
    made = make_prompt(senses, "a<|image_2|>bc<|image_1|>d", letters, [ONE, TWO])
    assert made.ids == [97, *[-1] * len(second), 98, 99, *[-1] * len(first), 100]
    assert (made.features == np.concatenate([second, first])).all()
    before = make_prompt(senses, "abcd", letters, [ONE, TWO])
    assert before.ids == [*[-1] * (len(first) + len(second)), 97, 98, 99, 100]


def test_a_sound_beside_a_picture_has_its_own_projection(opened):
    senses, heard = opened["phi4mm"].senses, sound(1, 9000)
    spectrogram = log_mel(heard)
    alone = make_prompt(senses, "<|audio_1|>a", letters, sounds=[heard])
    assert (alone.features == sound_features(senses.hearing, spectrogram)).all()
    both = make_prompt(senses, "<|image_1|><|audio_1|>a", letters, [ONE], [heard])
    expected = sound_features(senses.hearing, spectrogram, beside="vision")
    assert (both.features[-len(expected) :] == expected).all()


def test_the_tag_without_a_number(opened):
    made = make_prompt(opened["phi4-siglip"].senses, "a<image>b<image>", letters, [ONE, TWO])
    assert (made.ids[0], made.ids[-1]) == (97, -1)
    assert made.ids.count(98) == 1


@pytest.mark.parametrize(
    ("kind", "text", "pictures", "sounds"),
    [
        ("phi3v", "<|image_1|>", 2, 0),
        ("phi3v", "<|image_2|>", 1, 0),
        ("phi3v", "<|image_1|><|image_1|>", 1, 0),
        ("phi3v", "<|image_0|>", 1, 0),
        ("phi3v", "a", 0, 1),
        ("phi4mm", "<|image_1|>", 1, 1),
        ("phi4-siglip", "<image>", 2, 0),
    ],
)
def test_what_does_not_fit_is_refused(opened, kind, text, pictures, sounds):
    with pytest.raises(UsageError):
        make_prompt(opened[kind].senses, text, letters, [ONE] * pictures, [sound(1, 500)] * sounds)


def test_a_model_of_text_neither_sees_nor_hears():
    with pytest.raises(UsageError, match="does not see"):
        make_prompt(None, "a", letters, [ONE])
    with pytest.raises(UsageError, match="does not hear"):
        make_prompt(None, "a", letters, sounds=[sound(1, 500)])


def test_generate_continues_after_a_picture(opened):
    model = opened["phi4-siglip"]
    (token,) = phiconv.generate(model, "Hello", 1, pictures=[ONE])
    made = make_prompt(model.senses, "Hello", lambda text: encode(model.tokenizer, text), [ONE])
    result = compute(model, [made.ids], features=made.features)
    assert token == int(result.at(np.array([len(made.ids) - 1])).argmax())


def write_wave(path, samples, *, rate=16000, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def test_a_wav_file(tmp_path):
    samples = np.array([0, 100, -32768, 32767], "<i2")
    found = read_sound(write_wave(tmp_path / "a.wav", samples))
    assert found.tolist() == [0, 100 / 32768, -1, 32767 / 32768]
    stereo = read_sound(write_wave(tmp_path / "b.wav", samples, channels=2))
    assert stereo.tolist() == [50 / 32768, -0.5 / 32768]


@pytest.mark.parametrize("change", [{"rate": 8000}, {"width": 1}])
def test_other_sounds_are_refused(tmp_path, change):
    path = write_wave(tmp_path / "a.wav", np.zeros(8, "<i2"), **change)
    with pytest.raises(InputError, match="a sound of"):
        read_sound(path)


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", b"RIFF" + struct.pack("<I", 1 << 31) + b"WAVEfmt ", b"\0" * 99]
)
@pytest.mark.parametrize("read", [read_sound, read_picture])
def test_files_that_are_something_else(tmp_path, data, read):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InputError):
        read(tmp_path / "file")
    with pytest.raises(InputError):
        read(tmp_path / "none")


def test_no_picture_starts_another_program(tmp_path, monkeypatch):
    """For PostScript, Pillow would."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    image.fromarray(ONE).save(tmp_path / "one.png", "EPS")
    with pytest.raises(InputError, match="no picture that can be opened"):
        read_picture(tmp_path / "one.png")


def test_half_a_sample_at_the_end_is_left_out(tmp_path):
    path = write_wave(tmp_path / "a.wav", np.array([100, 200], "<i2"))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_sound(path).tolist() == [100 / 32768]


def test_the_command(opened, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.fromarray(ONE).save(tmp_path / "one.png")
    assert (read_picture(tmp_path / "one.png") == ONE).all()
    model = opened["phi4-siglip"]
    arguments = ["generate", str(model.path), "--prompt", "Hello", "-n", "2", "--json"]
    told = CliRunner().invoke(main, [*arguments, "--image", str(tmp_path / "one.png")])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["ids"] == [*phiconv.generate(model, "Hello", 2, pictures=[ONE])]
    told = CliRunner().invoke(main, [*arguments, "--audio", str(tmp_path / "one.png")])
    assert told.exit_code != 0
    assert "WAV" in told.output


def test_places_and_features_are_counted(opened):
    model = opened["phi4-siglip"]
    with pytest.raises(PhiconvError, match="2 places for 3 features"):
        compute(model, [[1, -1, -1]], features=np.zeros((3, 64), np.float32))
    with pytest.raises(UsageError, match="not in the vocabulary"):
        compute(model, [[1, -1]])
