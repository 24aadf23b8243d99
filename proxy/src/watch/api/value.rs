//! JSON of bounded size: what an object comes to in memory is no multiple of what the server sends, however it is made.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The most values in one object: nearly twice what 1.5 MiB, the largest object in etcd, can hold of a Service's ports.
pub(super) const MOST: usize = 500_000;
/// The part of an object that says what it is called, and the most values in it: a room of its own.
const METADATA: &str = "metadata";
const MOST_METADATA: usize = 100_000;
/// Nesting beyond this is left out; objects that are read have less than ten levels, and so does their metadata.
const DEEPEST: u32 = 24;
/// A part of the metadata that nobody here reads, and that is often the larger part of an object.
const UNREAD: &str = "managedFields";

/// Reads a value; what is too deep or too much is left out and counted.
#[derive(Debug)]
pub(super) struct Reader {
    room: usize,
    /// A field of the object that is passed over.
    apart: Option<&'static str>,
    /// Values that were left out; those within them are not counted.
    pub left_out: usize,
}

impl Reader {
    /// With room for `most` values.
    pub fn new(most: usize) -> Self {
        Self { room: most, apart: None, left_out: 0 }
    }

    /// The same, but this field of the object is for [`Reader::read_items`].
    pub fn without(most: usize, apart: &'static str) -> Self {
        Self { apart: Some(apart), ..Self::new(most) }
    }

    /// Reads.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<Value, D::Error> {
        Part { reader: self, depth: 0 }.deserialize(from)
    }

    /// Reads the items of the list in the field that was passed over, one at a time, in the room that is left.
    ///
    /// # Errors
    /// The field is no list and not null, or `each` says so.
    pub fn read_items<'de, D: Deserializer<'de>>(
        &mut self,
        from: D,
        each: &mut dyn FnMut(Value) -> Result<(), serde_json::Error>,
    ) -> Result<(), D::Error> {
        from.deserialize_map(Items { reader: self, each, of_list: false })
    }
}

/// The list of the field that was passed over, or the object that it is in.
struct Items<'a> {
    reader: &'a mut Reader,
    each: &'a mut dyn FnMut(Value) -> Result<(), serde_json::Error>,
    of_list: bool,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.of_list { "a list" } else { "an object" })
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            if Some(&*key) == self.reader.apart {
                entries.next_value_seed(Items { reader: &mut *self.reader, each: &mut *self.each, of_list: true })?;
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut list = Part { reader: self.reader, depth: 1 };
        loop {
            let Some(inner) = list.inner() else {
                if items.next_element::<IgnoredAny>()?.is_none() {
                    list.reader.left_out -= 1;
                    return Ok(());
                }
                continue;
            };
            match items.next_element_seed(inner)? {
                Some(item) => (self.each)(item).map_err(A::Error::custom)?,
                None => {
                    list.reader.room += 1;
                    return Ok(());
                }
            }
        }
    }
}

/// A value at some depth.
struct Part<'a> {
    reader: &'a mut Reader,
    depth: u32,
}

impl Part<'_> {
    /// For a value inside this one; `None`: there is no room for it.
    fn inner(&mut self) -> Option<Part<'_>> {
        if self.depth >= DEEPEST || self.reader.room == 0 {
            self.reader.left_out += 1;
            return None;
        }
        self.reader.room -= 1;
        Some(Part { reader: &mut *self.reader, depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.deserialize(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        loop {
            match self.inner() {
                Some(inner) => match items.next_element_seed(inner)? {
                    Some(item) => all.push(item),
                    None => {
                        // Room was taken for one more than there is.
                        self.reader.room += 1;
                        return Ok(all.into());
                    }
                },
                None => {
                    if items.next_element::<IgnoredAny>()?.is_none() {
                        self.reader.left_out -= 1;
                        return Ok(all.into());
                    }
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if self.depth == 0 && key == METADATA {
                // What an object is called has to be known, however much there is before it.
                let mut own = Reader::new(MOST_METADATA);
                all.insert(key, entries.next_value_seed(Part { reader: &mut own, depth: 1 })?);
                self.reader.left_out += own.left_out;
                continue;
            }
            let is_apart = key == UNREAD || self.depth == 0 && Some(&*key) == self.reader.apart;
            let inner = if is_apart { None } else { self.inner() };
            match inner {
                Some(inner) => drop(all.insert(key, entries.next_value_seed(inner)?)),
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(most: usize, text: &str) -> (Value, usize) {
        let mut reader = Reader::new(most);
        let value = reader.read(&mut serde_json::Deserializer::from_str(text)).unwrap();
        (value, reader.left_out)
    }

    #[test]
    fn what_fits_is_read_whole() {
        let value = json!({"a": [1, -2, 1.5, true, null, "x"], "b": {"c": {}}, "d": []});
        assert_eq!(read(100, &value.to_string()), (value, 0));
        let text = r#"{"metadata": {"name": "a", "managedFields": [{"fieldsV1": {}}]}}"#;
        assert_eq!(read(100, text), (json!({"metadata": {"name": "a"}}), 0));
    }

    #[test]
    fn what_does_not_is_left_out_and_counted() {
        assert_eq!(read(4, "[[1, 2], [3, 4], [5], 6]"), (json!([[1, 2], []]), 5 - 1));
        assert_eq!(read(2, r#"{"a": 1, "b": 2, "c": [3, 4]}"#), (json!({"a": 1, "b": 2}), 1));
        let text = r#"{"items": [1, 2, 3], "metadata": {"name": "last"}}"#;
        assert_eq!(read(2, text), (json!({"items": [1], "metadata": {"name": "last"}}), 2));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let (value, left_out) = read(MOST, &deep);
        assert_eq!((value.to_string().len(), left_out), (2 * (DEEPEST as usize + 1), 1));
        let many = format!("[{}1]", "1,".repeat(2 * MOST));
        assert_eq!(read(MOST, &many).1, MOST + 1);
    }

    fn items(most: usize, text: &str) -> (Result<Vec<Value>, String>, usize) {
        let (mut reader, mut read) = (Reader::without(most, "items"), Vec::new());
        let rest = reader.read(&mut serde_json::Deserializer::from_str(text)).unwrap();
        assert_eq!(rest.get("items"), None, "{text}");
        let each = &mut |item: Value| {
            read.push(item);
            Ok(())
        };
        let result = reader.read_items(&mut serde_json::Deserializer::from_str(text), each);
        (result.map(|()| read).map_err(|error| error.to_string()), reader.left_out)
    }

    #[test]
    fn items_are_read_one_by_one_in_the_room_that_the_rest_has_left() {
        let text = r#"{"items": [{"a": [1]}, 2], "b": {"items": [3]}, "c": 4}"#;
        assert_eq!(items(100, text), (Ok(vec![json!({"a": [1]}), json!(2)]), 0));
        // Four values are beside the items, one is left for them, and `[1]` and what comes later has none.
        assert_eq!(items(5, text), (Ok(vec![json!({})]), 2));
        for none in [r#"{"items": null}"#, r#"{"items": []}"#, "{}"] {
            assert_eq!(items(9, none), (Ok(Vec::new()), 0), "{none}");
        }
        assert!(items(9, r#"{"items": 3}"#).0.unwrap_err().contains("expected a list"));
    }
}
