//! The feature gates of Kubernetes, as far as the kube-proxy of 1.34 to 1.37 knows them: all that are compiled into it, also those
//! of other components, as far as is known here: a name that is not is warned about, no more. Source: `test/compatibility_lifecycle/reference/` of kubernetes/kubernetes, `--help` of 1.36, and the page
//! "Feature Gates" of 1.37.

/// Gates that Kubernetes 1.36 has on for good.
const LOCKED_ON: &str = "
    APIServerTracing AggregatedDiscoveryRemoveBetaType AnonymousAuthConfigurableEndpoints AnyVolumeDataSource
    AuthorizeNodeWithSelectors AuthorizeWithSelectors BtreeWatchCache CPUManagerPolicyOptions CRDValidationRatcheting
    CSIServiceAccountTokenSecrets ConsistentListFromCache CustomResourceFieldSelectors DisableAllocatorDualWrite
    DynamicResourceAllocation ExecProbeTimeout HonorPVReclaimPolicy ImageMaximumGCAge InPlacePodVerticalScaling
    JobBackoffLimitPerIndex JobManagedBy JobPodReplacementPolicy JobSuccessPolicy KubeletCgroupDriverFromCRI
    KubeletFineGrainedAuthz KubeletTracing LogarithmicScaleDown MatchLabelKeysInPodAffinity MultiCIDRServiceAllocator
    NFTablesProxyMode NodeInclusionPolicyInPodTopologySpread NodeSwap OrderedNamespaceDeletion PodLifecycleSleepAction
    PodLifecycleSleepActionAllowZero PodObservedGenerationTracking PodSchedulingReadiness PreferSameTrafficDistribution
    RecoverVolumeExpansionFailure RecursiveReadOnlyMounts RelaxedDNSSearchValidation RelaxedEnvironmentVariableValidation
    ResilientWatchCacheInitialization RetryGenerateName SchedulerQueueingHints SeparateTaintEvictionController
    ServiceAccountTokenJTI ServiceAccountTokenNodeBinding ServiceAccountTokenNodeBindingValidation
    ServiceAccountTokenPodNodeInfo SidecarContainers StreamingCollectionEncodingToJSON StreamingCollectionEncodingToProtobuf
    StructuredAuthenticationConfiguration SupplementalGroupsPolicy SystemdWatchdog TopologyManagerPolicyOptions
    VolumeAttributesClass WinDSR WinOverlay";

/// Gates that it has off for good.
const LOCKED_OFF: &str = "AllowOverwriteTerminationGracePeriodSeconds AllowServiceLBStatusOnNonLB";

/// The others.
const OPEN: &str = "
    APIResponseCompression APIServerIdentity APIServerWebhookAuthenticationToken APIServingWithRoutine AllAlpha AllBeta
    AllowDNSOnlyNodeCSR AllowInsecureKubeletCertificateSigningRequests AllowParsingUserUIDFromCertAuth
    AllowServiceExternalIPs AllowUnsafeMalformedObjectDeletion AtomicFIFO AtomicWriteVolumeUserFields
    AuthorizePodWebsocketUpgradeCreatePermission CBORServingAndStorage CPUCFSQuotaPeriod CPUManager
    CPUManagerPolicyAlphaOptions CPUManagerPolicyBetaOptions CRDObservedGenerationTracking CRIListStreaming
    CSIMigrationPortworx CSIVolumeHealth ChangeContainerStatusOnKubeletRestart ClearingNominatedNodeNameAfterBinding
    ClientsAllowCARotation ClientsAllowCBOR ClientsAllowTLSCacheGC ClientsPreferCBOR
    CloudControllerManagerWatchBasedRoutesReconciliation CloudControllerManagerWebhook ClusterTrustBundle
    ClusterTrustBundleProjection ComponentFlagz ComponentSLIs ComponentStatusz CompositePodGroup ConcurrentWatchObjectDecode
    ConstrainedImpersonation ContainerCheckpoint ContainerRestartRules ContainerStopSignals ContextualLogging
    ControllerManagerReleaseLeaderElectionLockOnExit CoordinatedLeaderElection CronJobsScheduledAnnotation
    CrossNamespaceVolumeDataSource CustomCPUCFSQuotaPeriod DRAAdminAccess DRAConsumableCapacity DRADerivedAttributes
    DRADeviceBindingConditions DRADeviceCompatibilityGroups DRADeviceTaintRules DRADeviceTaints DRAExtendedResource
    DRAListTypeAttributes DRANodeAllocatableResources DRAOptionalNodeOperations DRAPartitionableDevices
    DRAPartitionableDevicesType DRAPrioritizedList DRAResourceClaimDeviceStatus DRAResourceClaimGranularStatusAuthorization
    DRAResourcePoolStatus DRASchedulerFilterTimeout DRAWorkloadResourceClaims DeclarativeValidation DeclarativeValidationBeta
    DeclarativeValidationTakeover DefaultPodSysctls DeploymentPodReplacementPolicy DeploymentReplicaSetTerminatingReplicas
    DetectCacheInconsistency DevicePluginCDIDevices DisableCPUQuotaWithExclusiveCPUs DisableNodeKubeProxyVersion
    ElasticIndexedJob EmptyDirVolumeMode EnvFiles EtcdRangeStream EventedPLEG ExcludeAdmissionWebhookVirtualResources
    ExtendWebSocketsToKubelet ExternalServiceAccountTokenSigner GRPCContainerProbeTLS GangScheduling GenericWorkload
    GitRepoVolumeDriver GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority H2CContainerProbe
    HPAConfigurableTolerance HPAScaleToZero HostnameOverride HugepageAwareEviction ImageVolume ImageVolumeWithDigest
    InOrderInformers InOrderInformersBatchProcess InPlacePodLevelResourcesVerticalScaling
    InPlacePodVerticalScalingAllocatedStatus InPlacePodVerticalScalingExclusiveCPUs InPlacePodVerticalScalingExclusiveMemory
    InPlacePodVerticalScalingInitContainers InPlacePodVerticalScalingMemoryBackedVolumes
    InPlacePodVerticalScalingSchedulerPreemption InTreePluginPortworxUnregister InformerResourceVersion KMSv1 KubeProxyIPVS
    KubeProxyNFTablesLocalhostNodePorts KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages KubeletInUserNamespace
    KubeletPSI KubeletPodResourcesDynamicResources KubeletPodResourcesGet KubeletPodResourcesListUseActivePods
    KubeletRegistrationGetOnExistsOnly KubeletSeparateDiskGC KubeletServiceAccountTokenForCredentialProviders
    LegacySidecarContainers ListFromCacheSnapshot LoadBalancerIPMode LocalStorageCapacityIsolationFSQuotaMonitoring
    LoggingAlphaOptions LoggingBetaOptions ManifestBasedAdmissionControlConfig MatchLabelKeysInPodTopologySpread
    MatchLabelKeysInPodTopologySpreadSelectorMerge MaxUnavailableStatefulSet MemoryManager MemoryQoS
    MutableCSINodeAllocatableCount MutablePVNodeAffinity MutablePodResourcesForSuspendedJobs
    MutableSchedulingDirectivesForSuspendedJobs MutatingAdmissionPolicy NFTablesNetlink NativeHistograms NodeDeclaredFeatures
    NodeLifecycleConditions NodeLogQuery NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching
    PLEGOnDemandRelist PersistentVolumeClaimUnusedSinceTime PodAndContainerStatsFromCRI PodCertificateRequest PodDeletionCost
    PodGroupPreemptionPolicy PodIndexLabel PodLevelResourceManagers PodLevelResources PodLogsQuerySplitStreams
    PodReadyToStartContainersCondition PodTopologyLabelsAdmission PodsAPI PortForwardWebsockets PreventStaticPodAPIReferences
    ProbeHostPodSecurityStandards ProcMountType QOSReserved ReduceDefaultCrashLoopBackOffDecay RelaxedServiceNameValidation
    ReloadKubeletClientCAFile ReloadKubeletServerCertificateFile RemoteRequestHeaderUID ResourceHealthStatus
    ResourceHealthStatusMessage RestartAllContainersOnContainerExits RotateKubeletServerCertificate RuntimeClassInImageCriApi
    SELinuxChangePolicy SELinuxMount SELinuxMountReadWriteOncePod SchedulerAsyncAPICalls SchedulerAsyncPreemption
    SchedulerPopFromBackoffQ SeparateCacheWatchRPC ServiceAccountNodeAudienceRestriction ServiceTrafficDistribution
    ShardedListAndWatch SizeBasedListCostEstimate SizeMemoryBackedVolumes StaleControllerConsistencyDaemonSet
    StaleControllerConsistencyJob StaleControllerConsistencyReplicaSet StaleControllerConsistencyStatefulSet
    StatefulSetAutoDeletePVC StatefulSetRecreateStrategy StatefulSetSemanticRevisionComparison StatefulSetStartOrdinal
    StorageCapacityScoring StorageNamespaceIndex StorageVersionAPI StorageVersionHash StorageVersionMigrator
    StrictCostEnforcementForVAP StrictCostEnforcementForWebhooks StrictIPCIDRValidation
    StructuredAuthenticationConfigurationEgressSelector StructuredAuthenticationConfigurationJWKSMetrics
    StructuredAuthorizationConfiguration TaintTolerationComparisonOperators TokenRequestServiceAccountUIDValidation
    TopologyAwareHints TopologyAwareWorkloadScheduling TopologyManagerPolicyAlphaOptions TopologyManagerPolicyBetaOptions
    TranslateStreamCloseWebsocketRequests UnauthenticatedHTTP2DOSMitigation UnknownVersionInteroperabilityProxy
    UnlockWhileProcessingFIFO UserNamespacesHostNetworkSupport UserNamespacesPodSecurityStandards UserNamespacesSupport
    VolumeBindMountOptions VolumeLimitScaling WatchCacheInitializationPostStartHook WatchFromStorageWithoutResourceVersion
    WatchList WatchListClient WindowsCPUAndMemoryAffinity WindowsGracefulNodeShutdown WindowsHostNetwork
    WorkloadAwarePreemption WorkloadWithJob";

fn names(list: &'static str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|known| known == name)
}

/// Why a gate may not be set to this; absent where it may.
pub fn refused(name: &str, on: bool) -> Option<String> {
    (name == "AllowServiceExternalIPs" && !on).then(|| {
        "cannot be turned off: external IPs are always served here. The admission plugin DenyServiceExternalIPs keeps \
         Services from having any"
            .to_owned()
    })
}

/// Whether a gate is on by these switches: by its own, or else by that of all of its kind (`AllAlpha`, `AllBeta`), or else by its
/// default, which is off for alpha and on for the beta gates that are asked for here.
pub fn is_on<'a>(switches: impl Iterator<Item = (&'a str, bool)>, gate: &str, all_of_its_kind: &str) -> bool {
    let (mut all, mut own) = (all_of_its_kind == "AllBeta", None);
    for (name, on) in switches {
        if name == gate {
            own = Some(on);
        } else if name == all_of_its_kind {
            all = on;
        }
    }
    own.unwrap_or(all)
}

/// Why setting a gate to this has no effect here.
pub fn reason(name: &str, on: bool) -> &'static str {
    if names(LOCKED_ON, name) && !on {
        return "Kubernetes 1.36 has it locked to true, and its kube-proxy does not start with false";
    }
    if names(LOCKED_OFF, name) && on {
        return "Kubernetes 1.36 has it locked to false, and its kube-proxy does not start with true";
    }
    match name {
        "AllAlpha" | "AllBeta" => "what gates of kube-proxy turn on here is always on",
        "ClientsAllowCBOR" | "ClientsPreferCBOR" => "JSON is spoken with the API server",
        "ComponentFlagz" | "ComponentStatusz" => "/flagz and /statusz are always there",
        "ContextualLogging" => "log lines always have their fields",
        "KubeProxyIPVS" => "there is no IPVS here: mode ipvs is nftables with the settings of ipvs",
        "KubeProxyNFTablesLocalhostNodePorts" => "node ports never answer at loopback addresses",
        "LoggingAlphaOptions" | "LoggingBetaOptions" => "log lines are written at once, to standard error",
        "NFTablesNetlink" => "rows go by netlink, whole tables by nft",
        "NativeHistograms" => "histograms have kube-proxy's fixed buckets",
        "WatchListClient" => "objects are listed in pages and then watched",
        _ if names(OPEN, name) || names(LOCKED_ON, name) || names(LOCKED_OFF, name) => {
            "it turns nothing on or off in kube-proxy, or what is always on here"
        }
        _ => {
            "no gate of Kubernetes 1.34 to 1.37 that is known here has this name: it is misspelt, of another component, older, or \
             newer; kube-proxy does not start with a gate that it does not know"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_gate_is_on_by_itself_or_with_all_or_by_default() {
        let alpha = |switches: &[(&str, bool)]| is_on(switches.iter().copied(), "A", "AllAlpha");
        assert!(!alpha(&[]) && !alpha(&[("B", true), ("AllBeta", true)]));
        assert!(alpha(&[("A", true), ("AllAlpha", false)]) && alpha(&[("AllAlpha", true)]));
        assert!(!alpha(&[("A", false), ("AllAlpha", true)]));
        let beta = |switches: &[(&str, bool)]| is_on(switches.iter().copied(), "B", "AllBeta");
        assert!(beta(&[]) && beta(&[("AllAlpha", false)]) && beta(&[("B", true), ("AllBeta", false)]));
        assert!(!beta(&[("AllBeta", false)]) && !beta(&[("B", false)]));
    }

    #[test]
    fn every_name_stands_once() {
        let all: Vec<&str> =
            [LOCKED_ON, LOCKED_OFF, OPEN].iter().flat_map(|list| list.split_ascii_whitespace()).collect();
        assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
        assert!(all.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric())));
    }

    #[test]
    fn what_is_served_anyhow_cannot_be_turned_off() {
        assert!(refused("AllowServiceExternalIPs", false).is_some_and(|why| why.contains("cannot be turned off")));
        for gate in
            [("AllowServiceExternalIPs", true), ("NFTablesProxyMode", false), ("nftablesproxymode", true), ("", false)]
        {
            assert_eq!(refused(gate.0, gate.1), None);
        }
    }

    #[test]
    fn each_has_its_reason() {
        for (gate, wanted) in [
            (("NFTablesProxyMode", true), "it turns nothing"),
            (("NFTablesProxyMode", false), "Kubernetes 1.36 has it locked to true"),
            (("AllowServiceLBStatusOnNonLB", true), "Kubernetes 1.36 has it locked to false"),
            (("AllowServiceLBStatusOnNonLB", false), "it turns nothing"),
            (("GangScheduling", true), "it turns nothing"),
            (("AllAlpha", true), "what gates of kube-proxy"),
            (("nftablesproxymode", true), "no gate of Kubernetes"),
            (("", false), "no gate of Kubernetes"),
        ] {
            assert!(reason(gate.0, gate.1).starts_with(wanted), "{gate:?}");
        }
    }
}
