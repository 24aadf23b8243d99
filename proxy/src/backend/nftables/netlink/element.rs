//! One row of a map or set, and its bytes in a netlink message.

use super::attribute::{Writer, attributes, find, text, u32_be, value};
use super::error::Error;

// enum nft_list_attributes, nft_set_elem_attributes, nft_data_attributes, nft_verdict_attributes of
// include/uapi/linux/netfilter/nf_tables.h
pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
pub(super) const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub(super) const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_SET_ELEM_EXPR: u16 = 7;
pub(super) const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
const NFT_SET_ELEM_CATCHALL: u32 = 2;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;

/// One element of a map or set, as bytes on the wire.
///
/// A concatenated key (`ip daddr . meta l4proto . th dport`) is its parts side by side, each padded with zeros to 4
/// bytes: addresses in network order (4 or 16 bytes), the protocol 1 byte, ports 2 bytes big-endian, integers such as
/// `numgen` and `jhash` 4 bytes in host order. Data of several parts follows the same rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// The key; empty for the catch-all element `*`.
    pub key: Vec<u8>,
    /// In a set of concatenated intervals, the last key that belongs to the element, part by part and inclusive. There
    /// every element has it, also a single key (equal to `key`); in other sets none has.
    pub key_end: Option<Vec<u8>>,
    /// In a set of plain intervals (`flags interval`, no concatenation), an element that ends the interval begun below
    /// it: `key` is the first that no longer belongs. See [`Element::interval`].
    pub interval_end: bool,
    /// What a map gives for the key.
    pub data: Data,
}

/// The data of a map's element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// A set's element has none.
    None,
    /// Bytes, as in a key.
    Value(Vec<u8>),
    /// `goto CHAIN`.
    Goto(String),
    /// `jump CHAIN`.
    Jump(String),
    /// Another verdict by its number: 0 drop, 1 accept, -5 return.
    Verdict(i32),
}

impl Element {
    /// An element of a map or set without intervals.
    pub fn new(key: Vec<u8>, data: Data) -> Self {
        Self { key, key_end: None, interval_end: false, data }
    }

    /// The elements that stand for `first..=last` in a set of plain intervals: a start and, unless the interval runs to
    /// the greatest key, an end. Give them to a commit side by side in this order, for adding as for deleting.
    ///
    /// A set filled by `nft` may hold one more element: an end at the lowest key, which stands for "nothing below".
    pub fn interval(first: Vec<u8>, last: &[u8]) -> Vec<Self> {
        let mut end = last.to_vec();
        let mut carried = true;
        for byte in end.iter_mut().rev() {
            (*byte, carried) = byte.overflowing_add(1);
            if !carried {
                break;
            }
        }
        let mut elements = vec![Self::new(first, Data::None)];
        if !carried {
            elements.push(Self { interval_end: true, ..Self::new(end, Data::None) });
        }
        elements
    }

    /// Writes the element as an attribute of kind `NFTA_LIST_ELEM`. For a deletion the key alone is enough, so data is
    /// left out.
    pub(super) fn write(&self, writer: &mut Writer, with_data: bool) {
        let element = writer.nest(NFTA_LIST_ELEM);
        let mut flags = 0;
        if self.interval_end {
            flags |= NFT_SET_ELEM_INTERVAL_END;
        }
        if self.key.is_empty() {
            flags |= NFT_SET_ELEM_CATCHALL;
        } else {
            let key = writer.nest(NFTA_SET_ELEM_KEY);
            writer.value(NFTA_DATA_VALUE, &self.key);
            writer.end(key);
        }
        if let Some(end) = &self.key_end {
            let key_end = writer.nest(NFTA_SET_ELEM_KEY_END);
            writer.value(NFTA_DATA_VALUE, end);
            writer.end(key_end);
        }
        if flags != 0 {
            writer.value(NFTA_SET_ELEM_FLAGS, &flags.to_be_bytes());
        }
        if with_data && self.data != Data::None {
            let data = writer.nest(NFTA_SET_ELEM_DATA);
            match &self.data {
                Data::None => {}
                Data::Value(bytes) => writer.value(NFTA_DATA_VALUE, bytes),
                Data::Goto(chain) => write_verdict(writer, NFT_GOTO, Some(chain)),
                Data::Jump(chain) => write_verdict(writer, NFT_JUMP, Some(chain)),
                Data::Verdict(code) => write_verdict(writer, *code, None),
            }
            writer.end(data);
        }
        writer.end(element);
    }

    /// Reads what the kernel says of an element: the value of a `NFTA_LIST_ELEM` attribute. Timeout, expiration,
    /// comment and attached expressions are passed over.
    ///
    /// # Errors
    /// Bytes that are no element.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Error> {
        let mut element = Self::new(Vec::new(), Data::None);
        for attribute in attributes(bytes) {
            let attribute = attribute?;
            let inner = value(&attribute);
            match attribute.kind() {
                NFTA_SET_ELEM_KEY => element.key = read_value(inner)?,
                NFTA_SET_ELEM_KEY_END => element.key_end = Some(read_value(inner)?),
                NFTA_SET_ELEM_FLAGS => element.interval_end = u32_be(inner)? & NFT_SET_ELEM_INTERVAL_END != 0,
                NFTA_SET_ELEM_DATA => element.data = read_data(inner)?,
                _ => {}
            }
        }
        Ok(element)
    }
}

/// How many packets an element has counted, by what the kernel says of it (the value of a `NFTA_LIST_ELEM` attribute); `None`
/// for one without a counter.
///
/// # Errors
/// Bytes that are no element.
pub(super) fn packets(bytes: &[u8]) -> Result<Option<u64>, Error> {
    let Some(expression) = find(bytes, NFTA_SET_ELEM_EXPR)? else { return Ok(None) };
    if find(expression, NFTA_EXPR_NAME)?.map(text).as_deref() != Some("counter") {
        return Ok(None);
    }
    let Some(data) = find(expression, NFTA_EXPR_DATA)? else { return Ok(None) };
    let packets = find(data, NFTA_COUNTER_PACKETS)?;
    Ok(packets.and_then(|packets| packets.try_into().ok()).map(u64::from_be_bytes))
}

fn write_verdict(writer: &mut Writer, code: i32, chain: Option<&str>) {
    let verdict = writer.nest(NFTA_DATA_VERDICT);
    writer.value(NFTA_VERDICT_CODE, &code.to_be_bytes());
    if let Some(chain) = chain {
        writer.text(NFTA_VERDICT_CHAIN, chain);
    }
    writer.end(verdict);
}

fn read_value(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let value = find(bytes, NFTA_DATA_VALUE)?;
    Ok(value.ok_or_else(|| Error::Malformed("a key without a value".to_owned()))?.to_vec())
}

fn read_data(bytes: &[u8]) -> Result<Data, Error> {
    let Some(verdict) = find(bytes, NFTA_DATA_VERDICT)? else {
        return Ok(Data::Value(read_value(bytes)?));
    };
    let code = find(verdict, NFTA_VERDICT_CODE)?.ok_or_else(|| Error::Malformed("a verdict without a code".into()))?;
    let code = u32_be(code)?.cast_signed();
    let chain = find(verdict, NFTA_VERDICT_CHAIN)?.map(text);
    Ok(match (code, chain) {
        (NFT_GOTO, Some(chain)) => Data::Goto(chain),
        (NFT_JUMP, Some(chain)) => Data::Jump(chain),
        (code, _) => Data::Verdict(code),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_written_is_read_back() {
        let key = vec![10, 96, 0, 50, 6, 0, 0, 0, 0, 80, 0, 0];
        let elements = [
            Element::new(key.clone(), Data::None),
            Element::new(key.clone(), Data::Value(vec![10, 244, 1, 5, 0, 80, 0, 0])),
            Element::new(key.clone(), Data::Goto("random4-3".to_owned())),
            Element::new(key.clone(), Data::Jump("masquerade".to_owned())),
            Element::new(key.clone(), Data::Verdict(0)),
            Element::new(Vec::new(), Data::Verdict(-5)),
            Element { key_end: Some(key.clone()), ..Element::new(key.clone(), Data::None) },
            Element { interval_end: true, ..Element::new(vec![10, 97, 0, 0], Data::None) },
        ];
        for element in elements {
            let mut writer = Writer::default();
            element.write(&mut writer, true);
            let bytes = writer.into_bytes();
            assert_eq!(Element::read(find(&bytes, NFTA_LIST_ELEM).unwrap().unwrap()).unwrap(), element);
        }
    }

    #[test]
    fn an_interval_ends_at_the_key_behind_it_or_not_at_all() {
        let ends = |first: [u8; 4], last: [u8; 4]| -> Vec<(Vec<u8>, bool)> {
            let elements = Element::interval(first.to_vec(), &last);
            elements.into_iter().map(|element| (element.key, element.interval_end)).collect()
        };
        assert_eq!(ends([10, 96, 0, 0], [10, 96, 255, 255]), [(vec![10, 96, 0, 0], false), (vec![10, 97, 0, 0], true)]);
        assert_eq!(ends([240, 0, 0, 0], [255; 4]), [(vec![240, 0, 0, 0], false)]);
    }
}
