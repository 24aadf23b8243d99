//! The BPF programs have no clippy (see `test.rs`), so what it looks at everywhere else is looked at here.

use std::path::Path;

use crate::cargo::workspace;

/// The lines of Rust files below a folder where something unsafe does not say why: `// SAFETY:` in the comment above.
fn unexplained(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(unexplained(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path)?;
            found.extend(lines(&text).map(|line| format!("{}:{line}", path.display())));
        }
    }
    Ok(found)
}

/// The numbers of such lines.
fn lines(text: &str) -> impl Iterator<Item = usize> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_unsafe = |line: &str| !line.starts_with("//") && (line.contains("unsafe {") || line.contains("unsafe impl"));
    let explained = |at: usize| {
        // A statement may begin some lines above what is unsafe in it; the comment above that may be long.
        let above: Vec<&str> = lines[..=at].iter().rev().take_while(|line| !line.is_empty()).copied().collect();
        let is_comment = |line: &str| line.starts_with("//");
        let comment = above.iter().take(4).position(|line| is_comment(line)).unwrap_or(above.len());
        let length = above[comment..].iter().take_while(|line| is_comment(line)).count();
        above.iter().take((comment + length).max(4)).any(|line| line.contains("// SAFETY:"))
    };
    (0..lines.len())
        .filter(|at| is_unsafe(lines[*at]) && !explained(*at))
        .map(|at| at + 1)
        .collect::<Vec<_>>()
        .into_iter()
}

#[test]
fn everything_unsafe_in_the_programs_says_why() {
    assert_eq!(unexplained(&workspace().join("proxy-ebpf/src")).unwrap(), Vec::<String>::new());
}

#[test]
fn what_says_nothing_is_seen() {
    let text = "// SAFETY: read at once.\nlet a = unsafe { b() };\n\nlet c = unsafe { d() };\n// unsafe { e() }\n";
    assert_eq!(lines(text).collect::<Vec<_>>(), [4]);
}
