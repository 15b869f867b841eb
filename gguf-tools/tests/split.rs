//! `split` and `merge` as their users see them: arguments, names of the parts, what is told, and what is refused; and the
//! other verbs on a split model.

mod folder;

use std::path::Path;

use folder::Folder;
use serde_json::Value as Json;

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_split_and_merged_to_the_same_bytes() {
    let folder = Folder::new();
    let json =
        |arguments: &str| -> Json { serde_json::from_str(&folder.text(&format!("{arguments} --json"))).unwrap() };
    let shown = json("show model.gguf");
    let n_tensors = shown["tensors"].as_array().unwrap().len();

    let plan = json("split --dry-run --split-max-tensors 8 model.gguf part");
    assert_eq!((&plan["is_written"], names(&folder.path("")).len()), (&false.into(), 1));
    let done = json("split --split-max-tensors 8 model.gguf part");
    let parts = done["parts"].as_array().unwrap();
    assert_eq!(parts.len(), n_tensors.div_ceil(8));
    assert_eq!(plan["parts"], done["parts"]);
    for part in parts {
        let size = std::fs::metadata(folder.path(part["output"].as_str().unwrap())).unwrap().len();
        assert_eq!(part["bytes"], size);
    }
    let first = parts[0]["output"].as_str().unwrap().to_owned();
    assert_eq!(first, format!("part-00001-of-{:05}.gguf", parts.len()));

    let text = folder.text(&format!("merge {first} merged.gguf"));
    assert!(text.starts_with(&format!("merged.gguf: {n_tensors} tensors in ")), "{text}");
    let bytes = |name: &str| std::fs::read(folder.path(name)).unwrap();
    assert!(bytes("merged.gguf") == bytes("model.gguf"));

    // The verbs that look see the whole model.
    assert!(folder.text(&format!("compare model.gguf {first}")).contains(" are equal, 0 differ"));
    let (whole, split) = (json("hash model.gguf"), json(&format!("hash {first}")));
    assert_eq!((&whole["model"], &whole["tensors"]), (&split["model"], &split["tensors"]));
    assert_eq!(split["parts"].as_array().unwrap().len(), parts.len());
    let shown = json(&format!("show {first}"));
    assert_eq!(shown["tensors"].as_array().unwrap().len(), n_tensors);
    assert_eq!(shown["parts"].as_array().unwrap().len(), parts.len());
    assert!(folder.text(&format!("verify {first}")).contains("can be loaded"));
    let last = parts.last().unwrap()["output"].as_str().unwrap();
    let tensor = json(&format!("show {last}"))["tensors"][0]["name"].as_str().unwrap().to_owned();
    assert!(folder.text(&format!("show {first}")).contains(&format!(" of {last}, ")));
    assert_eq!(
        folder.text(&format!("inspect-tensor {first} {tensor}")),
        folder.text(&format!("inspect-tensor model.gguf {tensor}"))
    );
}

#[test]
fn limits_are_those_of_llama_gguf_split() {
    let folder = Folder::new();
    let parts = |arguments: &str| -> Vec<u64> {
        let text = folder.text(&format!("split --dry-run {arguments} model.gguf part --json"));
        let found: Json = serde_json::from_str(&text).unwrap();
        found["parts"].as_array().unwrap().iter().map(|part| part["tensors"].as_u64().unwrap()).collect()
    };
    let all: u64 = parts("").iter().sum();
    assert_eq!((parts(""), parts("--split-max-size 1G")), (vec![all], vec![all]));
    assert_eq!(parts("--no-tensor-first-split"), [0, all]);
    assert_eq!(parts("--split-max-tensors 1 --no-tensor-first-split").len() as u64, all + 1);
    for wrong in [
        "--split-max-size 3",
        "--split-max-size 0M",
        "--split-max-tensors 0",
        "--split-max-size 1M --split-max-tensors 3",
    ] {
        folder.refusal(2, &format!("split {wrong} model.gguf part"));
    }
}

#[test]
fn nothing_is_replaced_unasked_and_missing_parts_are_named() {
    let folder = Folder::new();
    folder.text("split --split-max-tensors 10 model.gguf part");
    let files = names(&folder.path(""));
    let first = files.iter().find(|name| name.starts_with("part-00001")).unwrap();
    let second = files.iter().find(|name| name.starts_with("part-00002")).unwrap();
    assert!(folder.refusal(1, "split --split-max-tensors 10 model.gguf part").contains("the file exists"));
    folder.text("split --split-max-tensors 10 model.gguf part --force");
    assert!(folder.refusal(1, "split --split-max-tensors 10 model.gguf part --dry-run").contains("the file exists"));
    assert!(folder.refusal(1, &format!("merge {first} model.gguf")).contains("the file exists"));
    assert!(folder.refusal(1, &format!("merge {first} {second} --force")).contains("is also an input"));
    assert!(folder.refusal(1, &format!("merge {second} new.gguf")).contains(&format!("give the first part, {first}")));
    assert!(folder.refusal(1, "merge model.gguf new.gguf").contains("nothing to merge"));
    folder.text(&format!("merge {first} new.gguf --dry-run"));
    assert_eq!(names(&folder.path("")), files);
    std::fs::remove_file(folder.path(second)).unwrap();
    let told = folder.refusal(1, &format!("merge {first} new.gguf"));
    assert!(told.contains(second) && told.contains("this part 2 of "), "{told}");
}

#[test]
fn heads_are_made_for_a_split_model_and_fit_it_in_one_file() {
    let folder = Folder::new();
    folder.text("split --split-max-tensors 10 --no-tensor-first-split model.gguf part");
    let first = names(&folder.path("")).into_iter().find(|name| name.starts_with("part-00001")).unwrap();
    let make = "--tokens 300 --answer 8 --layers 0 --screen-rank 32 --shortlist 64 --kv-maps off --agreement-levels 0.5 \
                --max-prompts 20 --costs 1,1,0.1";
    folder.text(&format!("add-heads {first} -o merged.gguf {make}"));
    assert!(folder.text("verify merged.gguf").contains("the heads were made for this model"));
    folder.text("extract-heads merged.gguf -o heads.gguf");
    folder.text("verify heads.gguf --model model.gguf");
    folder.text(&format!("verify heads.gguf --model {first}"));
    folder.text("strip-heads merged.gguf -o stripped.gguf");
    let bytes = |name: &str| std::fs::read(folder.path(name)).unwrap();
    assert!(bytes("stripped.gguf") == bytes("model.gguf"));
    assert!(folder.refusal(1, "split merged.gguf again").contains("strip-heads"));
}

#[test]
fn a_sidecar_without_a_place_goes_into_the_users_cache() {
    let folder = Folder::new();
    let model: Json = serde_json::from_str(&folder.text("hash model.gguf --json")).unwrap();
    let kept = folder.path(&format!("cache/heads/{}.gguf", model["model"].as_str().unwrap()));
    let make = "--sidecar --tokens 300 --answer 8 --layers 0 --screen-rank 32 --shortlist 64 --kv-maps off \
                --agreement-levels 0.5 --max-prompts 20 --costs 1,1,0.1";
    assert!(folder.text(&format!("add-heads model.gguf {make} --dry-run")).contains(kept.to_str().unwrap()));
    assert!(!kept.exists());
    let text = folder.text(&format!("add-heads model.gguf {make}"));
    assert!(text.contains(&format!("{}: ", kept.display())), "{text}");
    folder.text(&format!("verify {} --model model.gguf", kept.display()));
    assert!(names(kept.parent().unwrap()).iter().all(|name| name.ends_with(".gguf") || name == "index.json"));
    assert!(folder.refusal(1, &format!("add-heads model.gguf {make}")).contains("the file exists"));
    assert!(folder.refusal(2, "add-heads model.gguf").contains("--output"));

    folder.text("collect model.gguf -o tokens --tokens 300 --answer 8 --layers 0");
    let train =
        "train model.gguf tokens --sidecar --layers 0 --screen-rank 32 --shortlist 64 --kv-maps off --costs 1,1,0.1";
    assert!(folder.refusal(1, train).contains("the file exists"));
    folder.text(&format!("{train} --force"));
}
