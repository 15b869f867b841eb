//! The committed header is the one that the source makes.

use std::path::Path;

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(folder().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    // In the order of a reader: versions and statuses first, then the structs, then what works on them.
    let copies = tempfile::tempdir().unwrap();
    for file in ["version", "status", "params", "log", "model", "chat", "sampler", "session", "generate"] {
        let name = Path::new(file).with_extension("rs");
        let source = std::fs::read_to_string(folder().join("src/capi").join(&name)).unwrap();
        // cbindgen takes exported functions alone, and does not look into `cfg_attr`.
        let source = source.replace("#[cfg_attr(not(test), unsafe(no_mangle))]", "#[unsafe(no_mangle)]");
        std::fs::write(copies.path().join(&name), source).unwrap();
        builder = builder.with_src(copies.path().join(&name));
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_fresh() {
    let path = folder().join("include/offramp.h");
    let fresh = generated();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(
        committed == fresh,
        "include/offramp.h is stale: run UPDATE_HEADER=1 cargo test -p offramp-c --test header"
    );
}

#[test]
fn every_source_file_with_exports_is_in_the_header() {
    let header = generated();
    for entry in std::fs::read_dir(folder().join("src/capi")).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for name in source.split("extern \"C\" fn ").skip(1).filter_map(|rest| rest.split('(').next()) {
            if name.starts_with("offramp_") {
                assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
            }
        }
    }
}
