using System.Numerics;

namespace Dmp.Kvm.Devices;

/// <summary>One 8259A (Intel 8259A data sheet), without the wiring to the other. Under the pair's lock.</summary>
internal sealed class Pic8259Chip
{
    /// <summary>What <see cref="Pending"/> returns when nothing is to be served.</summary>
    public const int None = -1;

    private const int Inputs = 8;
    private const int LowestInput = Inputs - 1;
    private const byte VectorBaseMask = 0xF8;
    private const int OperationShift = 5;
    private const byte LevelMask = 0x07;
    private const byte PollInterrupt = 0x80;

    private readonly byte cascadeInputs;
    private readonly byte edgeOnlyInputs;

    private byte lines;
    private byte requests;
    private byte inService;
    private byte mask = byte.MaxValue; // As firmware leaves it: nothing comes before the guest has chosen its vectors.
    private byte levelTriggered;
    private byte vectorBase;
    private int lowestPriority = LowestInput;
    private InitializationStep step;
    private Icw1 icw1;
    private Icw4 icw4;
    private bool rotateInAutomaticEoi;
    private bool specialMask;
    private bool readInService;
    private bool poll;

    /// <param name="cascadeInputs">Inputs that another 8259A drives.</param>
    /// <param name="edgeOnlyInputs">Inputs that ELCR cannot make level-triggered.</param>
    public Pic8259Chip(byte cascadeInputs, byte edgeOnlyInputs)
    {
        this.cascadeInputs = cascadeInputs;
        this.edgeOnlyInputs = edgeOnlyInputs;
    }

    private enum InitializationStep
    {
        Ready,
        ExpectsIcw2,
        ExpectsIcw3,
        ExpectsIcw4,
    }

    /// <summary>The edge/level control register: a set bit makes the input level-triggered.</summary>
    public byte EdgeLevelControl
    {
        get => levelTriggered;
        set => levelTriggered = (byte)(value & ~edgeOnlyInputs);
    }

    /// <summary>Drives an input.</summary>
    public void SetLine(int input, bool level)
    {
        byte bit = Bit(input);
        bool rises = level && (lines & bit) == 0;
        lines = (byte)(level ? lines | bit : lines & ~bit);
        if ((levelTriggered & bit) != 0)
        {
            requests = (byte)(level ? requests | bit : requests & ~bit);
        }
        else if (rises)
        {
            // Latched until acknowledged, also if the line falls again: dropping it would only make a spurious interrupt of it.
            requests |= bit;
        }
        else if (!level && (cascadeInputs & bit) != 0)
        {
            requests &= (byte)~bit; // But for the cascade: the slave took its request back, and would answer with a spurious one.
        }
    }

    /// <summary>The input to serve next, or <see cref="None"/>.</summary>
    public int Pending()
    {
        byte blocking = inService;
        if (specialMask)
        {
            blocking &= (byte)~mask;
        }

        if ((icw4 & Icw4.SpecialFullyNested) != 0)
        {
            blocking &= (byte)~cascadeInputs;
        }

        int rank = Rank((byte)(requests & ~mask));
        return rank < Rank(blocking) ? Input(rank) : None;
    }

    /// <summary>What the CPU's acknowledge cycle does.</summary>
    /// <returns>The input that was acknowledged, or <see cref="None"/> for a spurious interrupt.</returns>
    public int Acknowledge()
    {
        int input = Pending();
        if (input == None)
        {
            return None;
        }

        byte bit = Bit(input);
        if ((levelTriggered & bit) == 0)
        {
            requests &= (byte)~bit;
        }

        if ((icw4 & Icw4.AutomaticEndOfInterrupt) == 0)
        {
            inService |= bit;
        }
        else if (rotateInAutomaticEoi)
        {
            lowestPriority = input;
        }

        return input;
    }

    /// <summary>The vector for an acknowledged input; a spurious interrupt looks like the last input without being in service.</summary>
    public byte Vector(int input) => (byte)(vectorBase | (input == None ? LowestInput : input));

    /// <summary>Reads the command port (A0 low).</summary>
    public byte ReadCommand()
    {
        if (poll)
        {
            poll = false;
            int input = Acknowledge();
            return input == None ? (byte)0 : (byte)(PollInterrupt | input);
        }

        return readInService ? inService : requests;
    }

    /// <summary>Reads the data port (A0 high): the mask.</summary>
    public byte ReadData() => poll ? ReadCommand() : mask;

    /// <summary>Writes the command port: ICW1, OCW2 or OCW3.</summary>
    public void WriteCommand(byte value)
    {
        if (((Icw1)value & Icw1.Initialize) != 0)
        {
            Initialize((Icw1)value);
        }
        else if (((Ocw3)value & Ocw3.Select) != 0)
        {
            Operate((Ocw3)value);
        }
        else
        {
            Operate((Ocw2)(value >> OperationShift), value & LevelMask);
        }
    }

    /// <summary>Writes the data port: ICW2 to ICW4 while initializing, then OCW1, the mask.</summary>
    public void WriteData(byte value)
    {
        switch (step)
        {
            case InitializationStep.ExpectsIcw2:
                vectorBase = (byte)(value & VectorBaseMask);
                step = (icw1 & Icw1.Single) == 0 ? InitializationStep.ExpectsIcw3 : AfterIcw3();
                break;
            case InitializationStep.ExpectsIcw3:
                step = AfterIcw3(); // The wiring is the board's, not the guest's.
                break;
            case InitializationStep.ExpectsIcw4:
                icw4 = (Icw4)value;
                step = InitializationStep.Ready;
                break;
            case InitializationStep.Ready:
            default:
                mask = value;
                break;
        }
    }

    private static byte Bit(int input) => (byte)(1 << input);

    private InitializationStep AfterIcw3() =>
        (icw1 & Icw1.IC4) != 0 ? InitializationStep.ExpectsIcw4 : InitializationStep.Ready;

    private void Initialize(Icw1 value)
    {
        icw1 = value;
        icw4 = Icw4.None;
        mask = 0;
        inService = 0;
        requests = (byte)(lines & levelTriggered); // The edge sense circuit is reset: a high line must fall first.
        lowestPriority = LowestInput;
        rotateInAutomaticEoi = false;
        specialMask = false;
        readInService = false;
        poll = false;
        step = InitializationStep.ExpectsIcw2;
    }

    private void Operate(Ocw3 value)
    {
        if ((value & Ocw3.EnableSpecialMask) != 0)
        {
            specialMask = (value & Ocw3.SpecialMask) != 0;
        }

        poll = (value & Ocw3.Poll) != 0;
        if ((value & Ocw3.ReadRegister) != 0)
        {
            readInService = (value & Ocw3.ReadInService) != 0;
        }
    }

    private void Operate(Ocw2 operation, int level)
    {
        switch (operation)
        {
            case Ocw2.ClearRotateInAutomaticEoi:
            case Ocw2.SetRotateInAutomaticEoi:
                rotateInAutomaticEoi = operation == Ocw2.SetRotateInAutomaticEoi;
                break;
            case Ocw2.NonspecificEoi:
            case Ocw2.RotateOnNonspecificEoi:
                EndHighest(operation == Ocw2.RotateOnNonspecificEoi);
                break;
            case Ocw2.SpecificEoi:
            case Ocw2.RotateOnSpecificEoi:
                End(level, operation == Ocw2.RotateOnSpecificEoi);
                break;
            case Ocw2.SetPriority:
                lowestPriority = level;
                break;
            case Ocw2.NoOperation:
            default:
                break;
        }
    }

    private void EndHighest(bool rotate)
    {
        byte served = specialMask ? (byte)(inService & ~mask) : inService;
        if (served != 0)
        {
            End(Input(Rank(served)), rotate);
        }
    }

    private void End(int input, bool rotate)
    {
        inService &= (byte)~Bit(input);
        if (rotate)
        {
            lowestPriority = input;
        }
    }

    // Rank 0 is the input after the lowest one; the rank of an empty set is below them all.
    private int Rank(byte set)
    {
        int first = (lowestPriority + 1) % Inputs;
        int rotated = ((set >> first) | (set << (Inputs - first))) & byte.MaxValue;
        return rotated == 0 ? Inputs : BitOperations.TrailingZeroCount(rotated);
    }

    private int Input(int rank) => (lowestPriority + 1 + rank) % Inputs;
}
