//! No file imports one that imports it, directly or by others, and no folder of a crate does: what a file
//! needs can be read before it. A module may use its own children, and these what it offers them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// A module as the names that lead to it: empty for the root of the crate.
type Module = Vec<String>;

/// The modules that each module imports.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// Returns the source of every module of a crate; those of tests aside.
fn modules(folder: &Path) -> BTreeMap<Module, String> {
    fn visit(folder: &Path, of: &Module, modules: &mut BTreeMap<Module, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let module = of.iter().cloned().chain([name.clone()]).collect();
            if name == "tests" || name == "bin" {
                continue;
            } else if path.is_dir() {
                visit(&path, &module, modules);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let is_root = of.is_empty() && (name == "lib" || name == "main");
                modules
                    .insert(if is_root { Module::new() } else { module }, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut modules = BTreeMap::new();
    visit(&folder.join("src"), &Module::new(), &mut modules);
    modules
}

/// Returns the code without comments, and without the tests at its end.
fn code(source: &str) -> String {
    let code = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect()
}

/// Returns the paths of a tree of imports: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(prefix: &[String], tree: &str, paths: &mut Vec<Vec<String>>) {
    let (mut depth, mut start) = (0, 0);
    let ends = tree.char_indices().filter(|(_, char)| {
        depth += i32::from(*char == '{') - i32::from(*char == '}');
        *char == ',' && depth == 0
    });
    let ends: Vec<_> = ends.map(|(at, _)| at).chain([tree.len()]).collect();
    for end in ends {
        let part = tree[start..end].trim();
        start = (end + 1).min(tree.len());
        let (names, inner) = part.split_once('{').map_or((part, None), |(names, inner)| (names, Some(inner)));
        let names = names.split(" as ").next().unwrap().split("::").map(str::trim);
        let path: Vec<_> =
            prefix.iter().cloned().chain(names.filter(|name| !name.is_empty()).map(str::to_owned)).collect();
        match inner {
            Some(inner) => expand(&path, inner.rsplit_once('}').unwrap().0, paths),
            None if !part.is_empty() => paths.push(path),
            None => {}
        }
    }
}

/// Returns the paths that code names: in its imports, and where it uses something by its path.
fn paths(code: &str) -> Vec<Vec<String>> {
    let (mut paths, mut rest, mut import) = (Vec::new(), String::new(), String::new());
    for line in code.lines() {
        let visible = line.trim_start().strip_prefix("pub").map_or(line.trim_start(), |line| {
            line.strip_prefix('(')
                .and_then(|line| line.split_once(')'))
                .map_or(line, |(_, line)| line)
                .trim_start()
        });
        match visible.strip_prefix("use ") {
            Some(tree) if import.is_empty() => import = tree.to_owned(),
            _ if import.is_empty() => rest += &format!("{line}\n"),
            _ => import += line,
        }
        if import.trim_end().ends_with(';') {
            expand(&[], std::mem::take(&mut import).trim_end().trim_end_matches(';'), &mut paths);
        }
    }
    for root in ["crate::", "super::"] {
        for (at, _) in rest.match_indices(root) {
            let path = rest[at..].split(|char: char| !char.is_alphanumeric() && char != '_' && char != ':');
            paths.push(path.take(1).flat_map(|path| path.split("::")).map(str::to_owned).collect());
        }
    }
    paths
}

/// Returns the module that a path in `from` leads to.
fn resolve(modules: &BTreeMap<Module, String>, from: &Module, path: &[String]) -> Option<Module> {
    let parents = path.iter().take_while(|name| *name == "super").count();
    let absolute: Module = match path.first().map(String::as_str) {
        Some("crate") => path[1..].to_vec(),
        Some("super") => {
            let base = from.len().checked_sub(parents)?;
            from[..base].iter().chain(&path[parents..]).cloned().collect()
        }
        Some("self") => from.iter().chain(&path[1..]).cloned().collect(),
        _ => from.iter().chain(path).cloned().collect(),
    };
    (0..=absolute.len()).rev().map(|len| absolute[..len].to_vec()).find(|module| modules.contains_key(module))
}

fn imports(modules: &BTreeMap<Module, String>) -> Imports {
    let of = |(module, source): (&Module, &String)| {
        let named = paths(&code(source)).into_iter().filter_map(|path| resolve(modules, module, &path));
        let is_own = |other: &Module| other.starts_with(module) || module.starts_with(other);
        (module.clone(), named.filter(|other| !is_own(other)).collect())
    };
    modules.iter().map(of).collect()
}

/// Returns what each folder and file in the root of a crate imports of the others.
fn of_folders(imports: &Imports) -> Imports {
    let mut folders = Imports::new();
    for (module, others) in imports {
        let Some(folder) = module.first() else { continue };
        let of_others = others.iter().filter_map(|other| other.first()).filter(|other| *other != folder);
        folders.entry(vec![folder.clone()]).or_default().extend(of_others.map(|other| vec![other.clone()]));
    }
    folders
}

/// Returns the modules that import themselves by others: what is left when all are taken away that import
/// nothing which is left.
fn circles(mut imports: Imports) -> Vec<Module> {
    loop {
        let left: BTreeSet<_> = imports.keys().cloned().collect();
        let before = imports.len();
        imports.retain(|_, others| others.iter().any(|other| left.contains(other)));
        // Nor those that nobody imports who is left.
        let imported: BTreeSet<_> = imports.values().flatten().cloned().collect();
        imports.retain(|module, _| imported.contains(module));
        if imports.len() == before {
            return imports.into_keys().collect();
        }
    }
}

fn names(modules: &[Module]) -> Vec<String> {
    modules.iter().map(|module| module.join("::")).collect()
}

#[test]
fn no_file_and_no_folder_imports_itself_by_others() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(crates).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("src").is_dir() {
            continue;
        }
        let imports = imports(&modules(&folder));
        seen += imports.values().map(BTreeSet::len).sum::<usize>();
        let of_folders = of_folders(&imports);
        for circle in [circles(imports), circles(of_folders)] {
            assert!(circle.is_empty(), "a circle in {}: {:?}", folder.display(), names(&circle));
        }
    }
    assert!(seen > 100, "it found few imports: {seen}");
}

#[test]
fn a_circle_is_found_and_what_hangs_on_it_is_not_named() {
    let source = |text: &str| text.to_owned();
    let modules = BTreeMap::from([
        (vec![], source("mod a;\nmod b;\nmod c;\nuse a::A;\n")),
        (vec!["a".into()], source("pub use self::x::X;\nuse crate::{b::{B, Other as O}, c};\n")),
        (vec!["a".into(), "x".into()], source("use super::{A, super::c::C};\n")),
        (vec!["b".into()], source("// use nothing::here;\nfn b() -> crate::a::x::X {}\n")),
        (vec!["c".into()], source("use std::fs;\n")),
    ]);
    let imports = imports(&modules);
    assert_eq!(names(&circles(imports.clone())), Vec::<String>::new(), "a needs b, and b needs a::x");
    assert_eq!(names(&circles(of_folders(&imports))), ["a", "b"]);
}
