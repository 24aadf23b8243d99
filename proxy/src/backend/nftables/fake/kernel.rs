//! What is asked of a kernel, answered from memory.

use super::*;

impl Kernel for Fake {
    fn generation(&mut self) -> Result<u32, KernelError> {
        Ok(self.generation)
    }

    fn table(&mut self) -> Result<Option<u64>, KernelError> {
        Ok(self.table.as_ref().map(|table| table.number))
    }

    fn read(&mut self) -> Result<Option<Found>, KernelError> {
        if self.faults.reads > 0 {
            self.faults.reads -= 1;
            return Err(Self::lost());
        }
        let structure = self.structure()?;
        let Some(table) = &self.table else { return Ok(None) };
        let mut found = Found { comment: table.comment.clone(), structure, ..Found::default() };
        // By way of the bytes, as from a real kernel.
        for (map, family) in MAPS.iter().flat_map(|maps| maps.iter().zip(Family::BOTH)) {
            let of_map = table.rows.iter().filter(|(key, _)| maps::map_of(key) == *map);
            let elements: Vec<_> = of_map.flat_map(|(key, value)| maps::elements(key, value)).collect();
            if map.starts_with("service_cidrs") {
                let (nets, strange) = maps::intervals(family, &elements);
                found.rows.extend(nets.into_iter().map(|net| (Key::ServiceCidr(net), Value::Present)));
                found.strange += strange;
            } else {
                for element in &elements {
                    match maps::row(map, element) {
                        Some((key, value)) => drop(found.rows.insert(key, value)),
                        None => found.strange += 1,
                    }
                }
            }
        }
        Ok(Some(found))
    }

    fn structure(&mut self) -> Result<Structure, KernelError> {
        let Some(table) = &self.table else { return Ok(Structure::default()) };
        let chain = |(name, rules): (&Arc<str>, &Rules)| {
            let hook = table.hooks.get(name);
            let text = format!("{hook:?} {}", rules.join("\n"));
            let digest = ChainDigest { rules: rules.len(), base: hook.is_some(), digest: fnv1a(text.as_bytes()) };
            (name.clone(), digest)
        };
        let sets = table.sets.iter().map(|(name, text)| (name.clone(), fnv1a(text.as_bytes())));
        let others = table.others.clone();
        Ok(Structure { chains: table.chains.iter().map(chain).collect(), sets: sets.collect(), others })
    }

    fn digests(&mut self, chains: &[Arc<str>]) -> Result<Vec<(Arc<str>, ChainDigest)>, KernelError> {
        let found = self.structure()?.chains;
        Ok(chains.iter().filter_map(|name| Some((name.clone(), *found.get(name)?))).collect())
    }

    fn altered(&mut self, chains: &Chains, node: &NodeView) -> Result<BTreeSet<Arc<str>>, KernelError> {
        let is_altered = |(name, chain): &(&Arc<str>, &Chain)| self.rules(name) != chain_rules(chain, node).as_ref();
        Ok(chains.iter().filter(is_altered).map(|(name, _)| name.clone()).collect())
    }

    fn load(&mut self, script: &str) -> Result<(), KernelError> {
        let refused = |complaint: &str| Err(NftError::Refused { complaint: complaint.into() }.into());
        if self.is_short() {
            return Err(NftError::Short { complaint: "Cannot allocate memory".into() }.into());
        }
        if self.faults.loads > 0 {
            self.faults.loads -= 1;
            return refused("asked for");
        }
        let table = parse(script);
        if table.rows.keys().any(|key| self.faults.keys.contains(key))
            || table.chains.keys().any(|name| self.faults.chains.contains(name))
        {
            return refused("asked for");
        }
        let known = |name: &str| table.chains.contains_key(name);
        if !table.rows.values().all(|value| !matches!(value, Value::Chain(name) if !known(name)))
            || !table.chains.values().all(|rules| goes_to(rules).all(known))
        {
            self.complaints.push("a script goes to a chain that is not there".into());
            return refused("no such chain");
        }
        let mut table = table;
        if self.faults.dialect {
            let dynamic = table.chains.iter_mut().filter(|(name, _)| Chain::is_dynamic(name));
            dynamic.flat_map(|(_, rules)| rules).for_each(|rule| rule.push_str(" in other words"));
        }
        self.counts.clear();
        self.generation = self.generation.wrapping_add(1);
        table.number = self.generation.into();
        self.table = Some(table);
        Ok(())
    }

    fn commit(&mut self, changes: &[Change], chains: &Chains, node: &NodeView) -> Result<Vec<RowCount>, KernelError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let (mut counts, mut taken) = (self.counts.clone(), Vec::new());
        let is_due = self.faults.later == 0;
        self.faults.later = self.faults.later.saturating_sub(1);
        if is_due && self.is_short() {
            // At a row, as a real one meets it.
            let refused = Refused { errno: libc::ENOMEM, ops: 0..1, part: RefusedPart::Transaction };
            return Err(KernelError::refused(&refused, Some(changes.len() - 1)));
        }
        if is_due && self.faults.commits > 0 {
            self.faults.commits -= 1;
            return Err(KernelError::Refused { change: None, message: "asked for".into() });
        }
        let Some(mut table) = self.table.clone() else { return Err(self.refuse(0, "no table".into())) };
        self.complaints.extend(order::meets_half(&table.rows, changes));
        for (index, change) in changes.iter().enumerate() {
            let asked = match change {
                Change::AddChain(name) | Change::RewriteChain(name) => self.faults.chains.contains(name),
                Change::Add(key, _) => self.faults.keys.contains(key),
                Change::Delete(..) => false,
            };
            if asked {
                return Err(KernelError::Refused { change: Some(index), message: "asked for".into() });
            }
            let fault = match change {
                Change::AddChain(name) | Change::RewriteChain(name) => {
                    let rules = chains.get(name).and_then(|chain| chain_rules(chain, node)).unwrap_or_default();
                    let missing = goes_to(&rules).find(|name| !table.chains.contains_key(*name)).map(str::to_owned);
                    let was = table.chains.insert(name.clone(), rules).is_some();
                    let twice = was == matches!(change, Change::AddChain(_));
                    missing
                        .map(|missing| format!("{name} goes to {missing}"))
                        .or(twice.then(|| format!("{name} is there, or not")))
                }
                Change::Delete(key, value) => {
                    taken.extend(counted(key, value, counts.remove(key)));
                    (table.rows.remove(key).as_ref() != Some(value)).then(|| format!("{key:?} is not there"))
                }
                Change::Add(Key::Of(of, Part::SourceRange(net)), _) if order::overlaps(&table.rows, *of, net) => {
                    Some(format!("{of} has a range that overlaps with {net}"))
                }
                Change::Add(key, value) => match value {
                    Value::Chain(name) if !table.chains.contains_key(name) => Some(format!("{key:?} goes to {name}")),
                    _ => table.rows.insert(*key, value.clone()).map(|old| format!("{key:?} is there: {old:?}")),
                },
            };
            if let Some(fault) = fault {
                return Err(self.refuse(index, fault));
            }
        }
        self.table = Some(table);
        self.counts = counts;
        self.generation = self.generation.wrapping_add(1);
        self.log.extend_from_slice(changes);
        self.meddle(changes);
        if is_due && self.faults.answers > 0 {
            self.faults.answers -= 1;
            return Err(Self::lost());
        }
        Ok(taken)
    }

    fn let_packets_pass(&mut self) {}

    fn counters(&mut self) -> Result<Vec<RowCount>, KernelError> {
        let rows = self.rows();
        Ok(rows.iter().filter_map(|(key, value)| counted(key, value, self.counts.get(key).copied())).collect())
    }

    fn delete_chains(&mut self, names: &[Arc<str>]) -> Result<(), KernelError> {
        let Some(mut table) = self.table.clone() else { return Err(self.refuse(0, "no table".into())) };
        for (index, name) in names.iter().enumerate() {
            let by_row = table.rows.values().any(|value| matches!(value, Value::Chain(chain) if chain == name));
            let by_chain = table.chains.values().any(|rules| goes_to(rules).any(|to| to == &**name));
            if by_row || by_chain || table.chains.remove(name).is_none() {
                return Err(self.refuse(index, format!("chain {name} is in use, or not there")));
            }
        }
        self.table = Some(table);
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn forget_clients(&mut self, numbers: &BTreeSet<u32>) -> Result<u32, KernelError> {
        self.forgotten.extend(numbers);
        Ok(0)
    }
}
