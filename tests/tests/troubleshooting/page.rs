//! The page, taken apart.

use std::path::Path;

/// All of it.
pub fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/troubleshooting.md");
    std::fs::read_to_string(path).unwrap()
}

/// A problem by its number.
pub fn section(number: usize) -> String {
    let page = page();
    let mut all = page.split("\n## ").skip(1);
    let found = all.find(|text| text.starts_with(&format!("{number}. ")));
    found.unwrap_or_else(|| panic!("no section {number}")).to_owned()
}

/// Lines of blocks of code, and code within sentences, which may go on over the end of a line.
pub fn code(page: &str) -> Vec<String> {
    let mut code = Vec::new();
    for (number, part) in page.split("```").enumerate() {
        if number % 2 == 1 {
            code.extend(part.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        } else {
            let spans = part.split('`').skip(1).step_by(2);
            code.extend(spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }
    code
}

/// The commands of a section that begin so.
pub fn commands(section: &str, start: &str) -> Vec<String> {
    let commands: Vec<String> = code(section).into_iter().filter(|code| code.starts_with(start)).collect();
    assert!(!commands.is_empty(), "no command {start:?} in {section}");
    commands
}

/// What stands in italics: texts of the tools.
pub fn quoted(page: &str) -> Vec<&str> {
    let ends = |text: &str| text.starts_with(|letter: char| letter.is_alphanumeric()) && text.contains(' ');
    page.split('*')
        .filter(|text| ends(text) && text.len() < 60 && !text.contains('\n') && !text.contains('`'))
        .collect()
}

/// Every line that a section shows of an output, in the block that holds `mark`, is one of what was printed, but for numbers and for
/// what `…` stands for.
pub fn shows(section: &str, mark: &str, printed: &str) {
    let block = section.split("```").skip(1).step_by(2).find(|block| block.contains(mark));
    let block = block.unwrap_or_else(|| panic!("no block with {mark:?} in {section}"));
    let printed: Vec<String> = printed.lines().map(shape).collect();
    for line in block.lines().filter(|line| !line.is_empty()) {
        let wanted = shape(line);
        assert!(printed.iter().any(|line| is_like(line, &wanted)), "the page shows {wanted:?}; there is {printed:#?}");
    }
}

/// A line with one space for many, and one sign for each number.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    for word in line.split_whitespace() {
        let mut in_number = false;
        for letter in word.chars() {
            let is_number = letter.is_ascii_digit() || (in_number && letter == '.');
            if !(is_number && in_number) {
                shape.push(if is_number { '0' } else { letter });
            }
            in_number = is_number;
        }
        shape.push(' ');
    }
    shape.trim_end().to_owned()
}

/// Whether a line is as wanted, with `…` for anything.
fn is_like(line: &str, wanted: &str) -> bool {
    let mut parts = wanted.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let mut is_whole = false;
    for part in parts {
        is_whole = part.is_empty();
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    is_whole || rest.is_empty()
}

#[test]
fn lines_are_compared_but_for_numbers() {
    let page = "9. x\n```\nLATELY  OVERALL\n10.0.0.1:80  3.2 %  … ready\n```\n";
    shows(page, "LATELY", "LATELY OVERALL\n10.244.0.13:8080   100.0 % and more, ready\n");
    for (line, wanted) in [("a b c", "a … d"), ("a b", "a"), ("b", "a"), ("a b c", "a … b")] {
        assert!(!is_like(line, wanted), "{line:?} {wanted:?}");
    }
    assert!(is_like("a b", "a …") && is_like("a x b", "a … b") && is_like("a", "a"));
}
