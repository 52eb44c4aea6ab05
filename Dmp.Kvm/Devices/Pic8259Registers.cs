namespace Dmp.Kvm.Devices;

/// <summary>Initialization command word 1 (Intel 8259A data sheet).</summary>
[Flags]
internal enum Icw1 : byte
{
    None = 0,

    /// <summary>IC4: a fourth initialization word follows.</summary>
    IC4 = 1 << 0,

    /// <summary>SNGL: no cascade, no third word.</summary>
    Single = 1 << 1,

    /// <summary>Tells this word from the operation words.</summary>
    Initialize = 1 << 4,
}

/// <summary>Initialization command word 4.</summary>
[Flags]
internal enum Icw4 : byte
{
    None = 0,

    /// <summary>AEOI: automatic end of interrupt.</summary>
    AutomaticEndOfInterrupt = 1 << 1,

    /// <summary>SFNM: special fully nested mode.</summary>
    SpecialFullyNested = 1 << 4,
}

/// <summary>Operation command word 2: bits 7 to 5, rotate, specific level and end of interrupt.</summary>
internal enum Ocw2
{
    ClearRotateInAutomaticEoi = 0b000,
    NonspecificEoi = 0b001,
    NoOperation = 0b010,
    SpecificEoi = 0b011,
    SetRotateInAutomaticEoi = 0b100,
    RotateOnNonspecificEoi = 0b101,
    SetPriority = 0b110,
    RotateOnSpecificEoi = 0b111,
}

/// <summary>Operation command word 3.</summary>
[Flags]
internal enum Ocw3 : byte
{
    None = 0,

    /// <summary>RIS: which register <see cref="ReadRegister"/> selects; set is the in-service register.</summary>
    ReadInService = 1 << 0,

    /// <summary>RR: selects the register that reads return.</summary>
    ReadRegister = 1 << 1,

    /// <summary>P: the next read acknowledges an interrupt.</summary>
    Poll = 1 << 2,

    /// <summary>Tells this word from the second one.</summary>
    Select = 1 << 3,

    /// <summary>SMM: special mask mode.</summary>
    SpecialMask = 1 << 5,

    /// <summary>ESMM: lets <see cref="SpecialMask"/> change the mode.</summary>
    EnableSpecialMask = 1 << 6,
}
