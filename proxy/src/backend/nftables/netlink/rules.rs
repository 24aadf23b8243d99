//! Rules as the kernel reports them, and whether they say what we would write.

use super::super::expression::Expression;
use super::attribute::{Writer, attributes, find, is_nested, text, value};
use super::batch::{NFPROTO_INET, NFTABLES};
use super::connection::Connection;
use super::error::Error;

// include/uapi/linux/netfilter/nf_tables.h
const NFT_MSG_GETRULE: u16 = NFTABLES | 7;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
/// Expressions that hold state: their bytes change with packets.
const STATEFUL: [&str; 4] = ["counter", "quota", "limit", "last"];

/// A rule of the kernel.
#[derive(Debug)]
pub struct FoundRule<'a> {
    /// The chain that it is in.
    pub chain: String,
    expressions: &'a [u8],
}

impl Connection {
    /// Gives every rule of a table (family inet), or of one of its chains, to `each`: chain after chain, in the order of
    /// the rules. None where there is no such table or chain.
    ///
    /// # Errors
    /// The kernel refuses, the socket fails, or the rules change under every attempt to read them.
    pub fn rules(
        &self,
        table: &str,
        chain: Option<&str>,
        each: &mut dyn FnMut(FoundRule<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let what = || format!("rules of table inet {table}");
        let rules = self.socket.dump(&what(), NFT_MSG_GETRULE, NFPROTO_INET, |writer| {
            writer.text(NFTA_RULE_TABLE, table);
            chain.into_iter().for_each(|chain| writer.text(NFTA_RULE_CHAIN, chain));
        })?;
        self.complete(&rules, what)?;
        for message in rules.messages() {
            let (_, body) = message?;
            each(FoundRule::read(body)?)?;
        }
        Ok(())
    }
}

impl<'a> FoundRule<'a> {
    /// From a message's body.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Error> {
        let chain = find(body, NFTA_RULE_CHAIN)?.map(text).unwrap_or_default();
        Ok(Self { chain, expressions: find(body, NFTA_RULE_EXPRESSIONS)?.unwrap_or_default() })
    }
}

impl FoundRule<'_> {
    /// Gives the bytes of each expression to `each`, of those that hold state only the name.
    ///
    /// # Errors
    /// Bytes that are no list of expressions.
    pub(super) fn expressions_without_state(&self, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        for expression in attributes(self.expressions) {
            let expression = expression?;
            let expression = value(&expression);
            let name = find(expression, NFTA_EXPR_NAME)?.unwrap_or_default();
            each(if STATEFUL.contains(&text(name).as_str()) { name } else { expression });
        }
        Ok(())
    }

    /// Whether the rule consists of exactly these expressions. What we send is complete, so that an attribute which the
    /// kernel reports beyond it (a lookup turned around, a flag of the translation) is a difference.
    ///
    /// # Errors
    /// Bytes that are no list of expressions.
    pub fn says(&self, expressions: &[Expression]) -> Result<bool, Error> {
        let mut theirs = attributes(self.expressions);
        for expression in expressions {
            let mut writer = Writer::default();
            expression.write(&mut writer);
            let Some(their) = theirs.next().transpose()? else { return Ok(false) };
            let our = writer.into_bytes();
            let Some(our) = attributes(&our).next().transpose()? else { return Ok(false) };
            if !same(value(&our), value(&their))? {
                return Ok(false);
            }
        }
        Ok(theirs.next().is_none())
    }
}

/// Whether two lists have the same attributes in whatever order. Padding (an attribute without content) does not count.
fn same(ours: &[u8], theirs: &[u8]) -> Result<bool, Error> {
    for our in attributes(ours) {
        let our = our?;
        let Some(their) = find(theirs, our.kind())? else { return Ok(false) };
        let equal = if is_nested(&our) { same(value(&our), their)? } else { value(&our) == their };
        if !equal {
            return Ok(false);
        }
    }
    for their in attributes(theirs) {
        let their = their?;
        if !value(&their).is_empty() && find(ours, their.kind())?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::default();
        attributes.iter().for_each(|(kind, value)| writer.value(*kind, value));
        writer.into_bytes()
    }

    #[test]
    fn lists_are_the_same_in_any_order_but_not_with_more_or_less() {
        let ours = list(&[(1, &[1, 2]), (2, &[3])]);
        assert!(same(&ours, &list(&[(2, &[3]), (1, &[1, 2])])).unwrap());
        assert!(same(&ours, &list(&[(1, &[1, 2]), (8, &[]), (2, &[3])])).unwrap(), "padding");
        assert!(!same(&ours, &list(&[(1, &[1, 2])])).unwrap());
        assert!(!same(&ours, &list(&[(1, &[1, 2]), (2, &[4])])).unwrap());
        assert!(!same(&ours, &list(&[(1, &[1, 2]), (2, &[3]), (3, &[0])])).unwrap());
        assert!(same(&ours, &ours[..ours.len() - 4]).is_err(), "cut short");
    }

    #[test]
    fn nested_lists_are_compared_whatever_their_flags() {
        let nested = |flagged: bool, inner: &[(u16, &[u8])]| {
            let mut writer = Writer::default();
            let nest = writer.nest(5);
            writer.raw(&list(inner));
            writer.end(nest);
            let mut bytes = writer.into_bytes();
            if !flagged {
                bytes[2..4].copy_from_slice(&5u16.to_ne_bytes());
            }
            bytes
        };
        let ours = nested(true, &[(1, &[1]), (2, &[2])]);
        assert!(same(&ours, &nested(false, &[(2, &[2]), (1, &[1])])).unwrap());
        assert!(!same(&ours, &nested(true, &[(2, &[2]), (1, &[3])])).unwrap());
    }
}
