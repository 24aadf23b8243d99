//! The kernel's answers and our batches, for the fuzzer.

use netlink_packet_core::NLMSG_ERROR;

use super::attribute::{NETFILTER_HEADER, Writer, attributes, find, frames, text, value};
use super::batch::{Batch, GROUP, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET};
use super::connection::{self, for_each_element, is_whole};
use super::element::{Data, Element, NFTA_LIST_ELEM};
use super::error::Error;
use super::kernel::{Dump, read_answer};
use super::op::{Op, Ops};
use super::others::read_other;
use super::rules::FoundRule;
use super::ruleset::{read_table, without_rules};
use super::sets::read_set;

/// Reads a dump as each of the lists that are asked for. Its messages are numbered 1.
///
/// # Errors
/// What the first reader that refuses says.
pub(crate) fn read(bytes: &[u8]) -> Result<(), Error> {
    for frame in frames(bytes) {
        let frame = frame?;
        if frame.message_type() == NLMSG_ERROR {
            read_answer(&frame)?;
        }
    }
    let dump = Dump::read_before(bytes.to_vec(), 1);
    is_whole(&dump)?;
    for_each_element(&dump, |bytes| {
        let element = Element::read(bytes)?;
        written_again(&element)
    })?;
    for message in dump.messages() {
        let (_, body) = message?;
        let results = [
            read_table(body).map(drop),
            without_rules(body).map(drop),
            read_set(body).map(drop),
            read_other(body, "kubeferry").map(drop),
            FoundRule::read(body).and_then(|rule| {
                rule.expressions_without_state(|_| ())?;
                rule.says(&[]).map(drop)
            }),
        ];
        results.into_iter().collect::<Result<(), Error>>()?;
    }
    Ok(())
}

/// Reads what a transaction has taken.
///
/// # Errors
/// The bytes are refused.
pub(crate) fn read_taken(bytes: &[u8]) -> Result<(), Error> {
    let mut taken = Vec::new();
    for frame in frames(bytes) {
        connection::read_taken(frame?.payload().get(4..).unwrap_or_default(), &mut taken)?;
    }
    assert!(taken.len() * 4 <= bytes.len(), "each is somewhere");
    taken.iter().try_for_each(|taken| written_again(&taken.element))
}

/// A row is written, and read as it was.
fn written_again(element: &Element) -> Result<(), Error> {
    // A verdict that names no chain where it should is read, and refused as a row.
    if !matches!(element.data, Data::Verdict(-4 | -3)) {
        let mut writer = Writer::default();
        element.write(&mut writer, true);
        let written = writer.into_bytes();
        let again = Element::read(find(&written, NFTA_LIST_ELEM)?.unwrap_or_default())?;
        assert_eq!(again, *element);
    }
    Ok(())
}

/// The rows of a batch that adds these, or deletes them, read back from its bytes: the map and the element.
pub(crate) fn there_and_back(rows: &[(&str, Element)], add: bool, group: usize) -> Vec<(String, Element)> {
    let op = |map, element| if add { Op::Add { map, element } } else { Op::Delete { map, element } };
    let ops: &Ops<'_> = &|push| rows.iter().for_each(|(map, element)| push(op(map, element)));
    let batch = Batch::new("kubeferry", ops, 7, group.min(GROUP));
    let mut found = Vec::new();
    for frame in frames(&batch.bytes).flatten() {
        let Some(body) = frame.payload().get(4..) else { continue };
        let (Ok(Some(map)), Ok(Some(list))) =
            (find(body, NFTA_SET_ELEM_LIST_SET), find(body, NFTA_SET_ELEM_LIST_ELEMENTS))
        else {
            continue;
        };
        for element in attributes(list).flatten() {
            found.extend(Element::read(value(&element)).ok().map(|element| (text(map), element)));
        }
    }
    // Whatever the kernel points at is one of the operations.
    for message in 0..=batch.len() + 1 {
        for offset in (0..=batch.bytes.len().min(512)).step_by(4).map(Some).chain([None, Some(NETFILTER_HEADER)]) {
            let refused = batch.refused("kubeferry", message, 1, offset);
            assert!(refused.ops.start <= refused.ops.end && refused.ops.end <= rows.len(), "{refused:?}");
        }
    }
    found
}
