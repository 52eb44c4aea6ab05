using System.Collections.Immutable;
using Akka.Actor;
using Dmp.Kvm.Machine;
using static Dmp.Actors.Vcpus.VcpuProtocol;

namespace Dmp.Actors.Vcpus;

/// <summary>
/// The life of a vCPU as a pure function: state and message in, state and effects out. Every message has an explicit answer in
/// every state; a request that is not legal is refused with the reason, never dropped.
/// </summary>
public static class VcpuStateMachine
{
    /// <summary>Takes one step.</summary>
    /// <param name="state">State now.</param>
    /// <param name="message">A request or a thread event of <see cref="VcpuProtocol"/>.</param>
    /// <param name="sender">Who gets the answer to a request.</param>
    public static VcpuTransition Next(VcpuState state, object message, IActorRef sender)
    {
        ArgumentNullException.ThrowIfNull(state);
        return message switch
        {
            Pause pause => OnPause(state, new PendingRequest(pause.RequestId, sender)),
            Resume resume => OnResume(state, new PendingRequest(resume.RequestId, sender)),
            Stop stop => OnStop(state, new PendingRequest(stop.RequestId, sender)),
            Describe describe => OnDescribe(state, new PendingRequest(describe.RequestId, sender)),
            ThreadReady => OnThreadReady(state),
            RunReturned returned => OnRunReturned(state, returned.Stop),
            RunThrew threw => OnRunThrew(state, threw.Failure),
            ThreadEnded => OnThreadEnded(state),
            _ => Unexpected(state, message),
        };
    }

    private static VcpuTransition OnPause(VcpuState state, PendingRequest request) => state.Phase switch
    {
        // A pause behind a stop could never be answered with Paused.
        VcpuPhase.Starting or VcpuPhase.Pausing when !state.Stops.IsEmpty => Refuse(state, request, "it is stopping"),
        VcpuPhase.Starting or VcpuPhase.Pausing => Stay(Hold(state, request) with { Pauses = state.Pauses.Add(request) }),
        VcpuPhase.Running => To(
            Hold(state, request) with { Phase = VcpuPhase.Pausing, Pauses = state.Pauses.Add(request) },
            new VcpuEffect.RequestPause()),
        VcpuPhase.Paused => Stay(Hold(state, request), AnswerPaused(state, request)),
        VcpuPhase.Crashed => Refuse(state, request, "it crashed and does not run"),
        _ => Refuse(state, request, "it has stopped"),
    };

    private static VcpuTransition OnResume(VcpuState state, PendingRequest request) => state.Phase switch
    {
        VcpuPhase.Starting => Refuse(state, request, "its thread is not there yet; ask for a pause first"),
        VcpuPhase.Running => Stay(state, new VcpuEffect.Reply(request.From, new Resumed(request.RequestId, state.Vcpu, Runs: true))),
        VcpuPhase.Pausing => Refuse(state, request, "a pause is under way; wait for its answer"),
        VcpuPhase.Paused => LetGo(state with { Holders = state.Holders.Remove(request.From) }, request),
        VcpuPhase.Crashed => Refuse(state, request, "it crashed; its state is kept for the report"),
        _ => Refuse(state, request, "it has stopped"),
    };

    private static VcpuState Hold(VcpuState state, PendingRequest request) =>
        state with { Holders = state.Holders.Add(request.From) };

    /// <summary>Who lets go is told so; the guest goes on when nobody else holds the vCPU.</summary>
    private static VcpuTransition LetGo(VcpuState state, PendingRequest request)
    {
        var answer = new VcpuEffect.Reply(request.From, new Resumed(request.RequestId, state.Vcpu, state.Holders.IsEmpty));
        return state.Holders.IsEmpty
            ? To(state with { Phase = VcpuPhase.Running }, new VcpuEffect.RunGuest(), answer)
            : Stay(state, answer);
    }

    private static VcpuTransition OnStop(VcpuState state, PendingRequest request) => state.Phase switch
    {
        VcpuPhase.Starting => Stay(state with { Stops = state.Stops.Add(request) }),
        VcpuPhase.Running => To(
            state with { Phase = VcpuPhase.Pausing, Stops = state.Stops.Add(request) },
            new VcpuEffect.RequestPause()),
        VcpuPhase.Pausing => Stay(state with { Stops = state.Stops.Add(request) }),
        VcpuPhase.Paused or VcpuPhase.Crashed => End(state with { Stops = state.Stops.Add(request) }),
        _ when state.ThreadEnded => Stay(state, AnswerStopped(state, request)),
        _ => Stay(state with { Stops = state.Stops.Add(request) }),
    };

    // Run is not executing in these three states, which is what DescribeState asks for.
    private static VcpuTransition OnDescribe(VcpuState state, PendingRequest request) => state.Phase switch
    {
        VcpuPhase.Paused or VcpuPhase.Crashed or VcpuPhase.Stopped => Stay(state, new VcpuEffect.ReplyDescription(request.From, request.RequestId)),
        VcpuPhase.Starting => Refuse(state, request, "its thread is not there yet"),
        _ => Refuse(state, request, "it runs; pause it first"),
    };

    private static VcpuTransition OnThreadReady(VcpuState state) => state.Phase switch
    {
        VcpuPhase.Starting => AtSafePoint(state),
        _ => Unexpected(state, new ThreadReady()),
    };

    private static VcpuTransition OnRunReturned(VcpuState state, VcpuStop stop) => (state.Phase, stop) switch
    {
        // A pause request that was still latched when the vCPU was resumed, or a signal of nobody's.
        (VcpuPhase.Running, VcpuStop.Paused) => Stay(state, new VcpuEffect.RunGuest()),
        (VcpuPhase.Pausing, VcpuStop.Paused) => AtSafePoint(state),
        (VcpuPhase.Running or VcpuPhase.Pausing, _) => End(state, new VcpuEffect.Notify(new Ended(state.Vcpu, stop))),
        _ => Unexpected(state, new RunReturned(stop)),
    };

    private static VcpuTransition OnRunThrew(VcpuState state, Exception failure) => state.Phase switch
    {
        VcpuPhase.Running or VcpuPhase.Pausing => Crash(state, failure),
        _ => Unexpected(state, new RunThrew(failure)),
    };

    private static VcpuTransition OnThreadEnded(VcpuState state) => state.Phase switch
    {
        VcpuPhase.Stopped when !state.ThreadEnded => new VcpuTransition(
            state with { ThreadEnded = true, Stops = [] },
            [.. state.Stops.Select(request => AnswerStopped(state, request))]),
        VcpuPhase.Stopped => Unexpected(state, new ThreadEnded()),

        // Nobody told it to end. There is nothing left to run on, so it is a crash that is also stopped.
        _ => new VcpuTransition(
            state with { Phase = VcpuPhase.Stopped, ThreadEnded = true, Pauses = [], Stops = [] },
            [
                .. RefuseAll(state with { Phase = VcpuPhase.Stopped }, state.Pauses, "its thread is gone"),
                new VcpuEffect.Notify(new Crashed(state.Vcpu, new InvalidOperationException("the vCPU thread ended unasked"))),
                .. state.Stops.Select(request => AnswerStopped(state, request)),
            ]),
    };

    /// <summary>The vCPU stands between two guest instructions: a stop goes before a pause.</summary>
    private static VcpuTransition AtSafePoint(VcpuState state) => state.Stops.IsEmpty
        ? new VcpuTransition(
            state with { Phase = VcpuPhase.Paused, Pauses = [] },
            [.. state.Pauses.Select(request => AnswerPaused(state, request))])
        : End(state);

    private static VcpuTransition End(VcpuState state, params IEnumerable<VcpuEffect> notices)
    {
        VcpuState stopped = state with { Phase = VcpuPhase.Stopped, Pauses = [] };
        return new VcpuTransition(
            stopped,
            [new VcpuEffect.EndThread(), .. notices, .. RefuseAll(stopped, state.Pauses, "it has stopped")]);
    }

    private static VcpuTransition Crash(VcpuState state, Exception failure)
    {
        VcpuState crashed = state with { Phase = VcpuPhase.Crashed, Pauses = [] };
        ImmutableList<VcpuEffect> effects =
        [
            new VcpuEffect.Notify(new Crashed(state.Vcpu, failure)),
            .. RefuseAll(crashed, state.Pauses, "it crashed"),
        ];
        if (state.Stops.IsEmpty)
        {
            return new VcpuTransition(crashed, effects);
        }

        VcpuTransition end = End(crashed);
        return end with { Effects = effects.AddRange(end.Effects) };
    }

    private static VcpuTransition Unexpected(VcpuState state, object message) =>
        Stay(state, new VcpuEffect.Warn($"vCPU {state.Vcpu}: {message.GetType().Name} is not expected while {state.Phase}"));

    private static VcpuTransition Refuse(VcpuState state, PendingRequest request, string reason) =>
        new(state, [.. RefuseAll(state, [request], reason)]);

    private static IEnumerable<VcpuEffect> RefuseAll(VcpuState state, ImmutableList<PendingRequest> requests, string reason) =>
        requests.Select(request =>
            new VcpuEffect.Reply(request.From, new Refused(request.RequestId, state.Vcpu, state.Phase, reason)));

    private static VcpuEffect.Reply AnswerPaused(VcpuState state, PendingRequest request) =>
        new(request.From, new Paused(request.RequestId, state.Vcpu));

    private static VcpuEffect.Reply AnswerStopped(VcpuState state, PendingRequest request) =>
        new(request.From, new Stopped(request.RequestId, state.Vcpu));

    private static VcpuTransition Stay(VcpuState state, params ImmutableList<VcpuEffect> effects) => new(state, effects);

    private static VcpuTransition To(VcpuState state, params ImmutableList<VcpuEffect> effects) => new(state, effects);
}
