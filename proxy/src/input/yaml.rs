//! YAML may say one thing many times by an alias, and aliases of aliases multiply: a page of text can come to more than any
//! memory holds (CVE-2019-11253). So where a document has aliases, what it comes to is counted before anything is built of it.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};

/// A text of so many bytes counts as one value more.
const TEXT: usize = 64;
/// The deepest nesting of a document. What reads YAML looks at every open level for every word of a text.
const DEEPEST: usize = 200;

/// Fails if the document has aliases and comes to more than `most` values. One that is no YAML passes: that is told with its
/// place when it is read.
///
/// # Errors
/// What it has too much of.
pub(crate) fn check(document: &str, most: usize) -> Result<(), String> {
    if depth(document) > DEEPEST {
        return Err(format!("it has more than {DEEPEST} brackets open at a time"));
    }
    if !(document.contains('&') && document.contains('*')) {
        return Ok(());
    }
    let left = Cell::new(most);
    let counted = Count(&left).deserialize(serde_yaml_ng::Deserializer::from_str(document));
    match counted {
        Err(_) if left.get() == 0 => Err(format!("its aliases come to more than {most} values")),
        _ => Ok(()),
    }
}

/// How many brackets are open at a time, at most; those in strings and comments count too, and closing ones as well.
fn depth(document: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in document.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[derive(Clone, Copy)]
struct Count<'a>(&'a Cell<usize>);

impl Count<'_> {
    fn some<E: Error>(self, many: usize) -> Result<(), E> {
        let left = self.0.get().saturating_sub(many);
        self.0.set(left);
        if left == 0 { Err(E::custom("too much")) } else { Ok(()) }
    }
}

impl<'de> DeserializeSeed<'de> for Count<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        self.some(1)?;
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Count<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.some(text.len() / TEXT)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while entries.next_entry_seed(self, self)?.is_some() {}
        Ok(())
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        let ((), content) = tagged.variant_seed(self)?;
        content.newtype_variant_seed(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1_000_000;

    #[test]
    fn aliases_that_multiply_are_counted_and_not_built() {
        let laughs: String =
            (1..9).map(|n| format!("l{n}: &l{n} [{}]\n", vec![format!("*l{}", n - 1); 9].join(","))).collect();
        let laughs = format!("l0: &l0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n{laughs}");
        // The parser's own limit comes first.
        assert!(check(&laughs, MOST).is_err() || serde_yaml_ng::from_str::<serde_yaml_ng::Value>(&laughs).is_err());
        // Few jumps, each to much: what the parser's own limit lets through.
        let wide = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(20_000), "*a,".repeat(20_000));
        assert!(check(&wide, MOST).unwrap_err().contains("1000000 values"));
        // One text of a megabyte, a thousand times.
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a,".repeat(1000));
        assert!(check(&long, MOST).unwrap_err().contains("1000000 values"));
    }

    #[test]
    fn what_people_write_passes() {
        let text = "base: &base {type: NodePort, ports: [{port: 80}]}\nspec: {<<: *base, clusterIP: 10.0.0.1, x: !t 3, y: ~}\n";
        assert_eq!(check(text, MOST), Ok(()));
        assert_eq!(check("a: 'no YAML & *at all", MOST), Ok(()), "told where it is read");
        assert_eq!(check("command: [\"a && b\", \"* * * * *\"]", MOST), Ok(()));
        assert!(check(&"[".repeat(1 << 20), MOST).is_err());
    }
}
