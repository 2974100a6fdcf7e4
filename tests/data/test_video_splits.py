"""Split files as the two data sets have them, line ends and spaces included."""

from __future__ import annotations

import pytest

from lstmvid.data.video_splits import read_hmdb51_split, read_split, read_ucf101_split, video_name

UCF101 = {
    "classInd.txt": "1 ApplyEyeMakeup\r\n2 Archery\r\n3 HandstandPushups\r\n",
    "trainlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nArchery/v_Archery_g01_c01.avi 2\r\n\r\n",
    "testlist02.txt": "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\nArchery/v_Archery_g02_c01.avi\r\n",
}
HMDB51 = {
    "brush_hair_test_split1.txt": "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n#20 x_brush_hair_goo_1.avi 2 \n",
    "wave_test_split1.txt": "50_wave_u.avi 0 \n19.2.08-wave_u_cm_np1_ba_bad_1.avi 2 \n",
    "wave_test_split2.txt": "50_wave_u.avi 1 \n51_wave_u.avi 2 \n",
    "readme.txt": "nothing",
}


def write(folder, files, **changes):
    for name, text in (files | changes).items():
        (folder / name).write_text(text, newline="")
    return folder


def test_ucf101(tmp_path):
    split = read_ucf101_split(write(tmp_path, UCF101), 2)
    assert split == read_split("ucf101", tmp_path, 2)
    assert split.classes == ("ApplyEyeMakeup", "Archery", "HandstandPushups")
    assert [tuple(video) for video in split.train] == [
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", 0),
        ("Archery/v_Archery_g01_c01.avi", 1),
    ]
    assert [video.label for video in split.test] == [2, 1]
    assert split.test[0].name == "HandstandPushups/v_HandStandPushups_g01_c01"


def test_hmdb51(tmp_path):
    split = read_hmdb51_split(write(tmp_path, HMDB51))
    assert split == read_split("hmdb51", tmp_path)
    assert split.classes == ("brush_hair", "wave")
    assert [tuple(video) for video in split.train] == [("brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", 0)]
    assert [tuple(video) for video in split.test] == [
        ("brush_hair/#20 x_brush_hair_goo_1.avi", 0),
        ("wave/19.2.08-wave_u_cm_np1_ba_bad_1.avi", 1),
    ]
    assert split.test[1].name == "wave/19.2.08-wave_u_cm_np1_ba_bad_1"  # only the suffix goes
    assert read_hmdb51_split(tmp_path, 2).classes == ("wave",)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("classInd.txt", "1 A\n1 B\n", r"classInd.txt, line 2, is '1 B', expected a new number"),
        ("classInd.txt", "Archery\n", "expected a new number and a class"),
        ("classInd.txt", "1 A\n3 B\n", r"has the numbers \[1, 3\]"),
        ("trainlist02.txt", "Kayaking/v.avi 1\n", r"trainlist02.txt, line 1, .* expected a video in the folder"),
        ("trainlist02.txt", "v.avi 1\n", "expected a video in the folder of a class"),
        ("trainlist02.txt", "Archery/v.avi 1\n", "gives Archery the number 1, but .*classInd.txt 2"),
        ("trainlist02.txt", "\n", "0 training and 2 test"),
        ("testlist02.txt", "Archery/v_Archery_g01_c01.avi\n", "Archery/v_Archery_g01_c01 for training and for test"),
    ],
)
def test_ucf101_damaged(tmp_path, file, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_ucf101_split(write(tmp_path, UCF101, **{file: text}), 2)


def test_hmdb51_damaged(tmp_path):
    write(tmp_path, HMDB51, **{"wave_test_split1.txt": "50_wave_u.avi 3 \n"})
    with pytest.raises(
        ValueError, match=r"wave_test_split1.txt, line 1, is '50_wave_u.avi 3', expected a video and 0, 1"
    ):
        read_hmdb51_split(tmp_path)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"classInd\.txt"):
        read_ucf101_split(tmp_path)
    write(tmp_path, UCF101)
    with pytest.raises(FileNotFoundError, match=r"trainlist03\.txt"):
        read_ucf101_split(tmp_path, 3)
    with pytest.raises(FileNotFoundError, match=r"<class>_test_split1\.txt"):
        read_hmdb51_split(tmp_path)
    with pytest.raises(ValueError, match="number is 0"):
        read_ucf101_split(tmp_path, 0)
    with pytest.raises(ValueError, match="layout is 'kinetics', expected one of ucf101, hmdb51"):
        read_split("kinetics", tmp_path)


def test_video_name():
    assert video_name("a.b/c.d.avi") == "a.b/c.d"
